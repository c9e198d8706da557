"""What a node operator is given: one file with all that is needed to take part in a federation, and nothing else."""

from pathlib import Path
from typing import Self

from pydantic import ValidationError

from zk0.errors import SettingsError
from zk0.federation.authority import fingerprint, public_line, write_private
from zk0.records import Record
from zk0.session import Name


class Kit(Record):
    """Who the node is, where the server is, how to know the server, and how to be known by it."""

    name: Name
    server: str
    """host:port"""
    authority: str
    """Certificate of the authority that has signed the server's (PEM)."""
    key: str
    """The node's private key as OpenSSH keeps it: whoever has it is this node."""

    def write(self, path: Path) -> None:
        """Keep it where only its owner can read it."""
        write_private(path, self.model_dump_json(indent=2).encode())

    def fingerprint(self) -> str:
        """The mark of its key, as the server's operator saw it."""
        return fingerprint(public_line(self.key.encode()))

    @classmethod
    def read(cls, path: Path) -> Self:
        """The kit in a file.

        Raises:
            SettingsError: there is none, or it is not whole.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as e:
            raise SettingsError(f"{path}: cannot be read ({e.strerror}); expected a kit of `zk0bot enroll`") from e
        except (UnicodeDecodeError, ValidationError) as e:
            raise SettingsError(f"{path}: not a whole kit of `zk0bot enroll`; ask the server's operator again") from e
