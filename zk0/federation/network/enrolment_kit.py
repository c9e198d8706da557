"""The enrolment kit of a node: one file with all that its operator needs to take part in a federation."""

from collections.abc import Callable
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, field_validator

from zk0.errors import SettingsError
from zk0.federation.network.certificate_authority import (
    check_certificate,
    check_node_key,
    key_fingerprint,
    public_key_line,
)
from zk0.records import Record
from zk0.settings.dataset_settings import SafeName
from zk0.settings.loading import faults_by_field
from zk0.storage.atomic import atomic_write_bytes

_MAX_PEM = 100_000
_REQUEST = "request one from the server's operator (zk0bot server enroll)"


class EnrolmentKit(Record):
    """A node's name and key, and the server's address and certificate."""

    name: SafeName
    server: str = Field(pattern=r"^[A-Za-z0-9_.:\[\]][A-Za-z0-9_.:\[\]-]{0,252}:[0-9]{1,5}$")
    """host:port"""
    ca_certificate: str = Field(max_length=_MAX_PEM)
    """Certificate of the authority that signed the server's certificate (PEM)."""
    key: str = Field(max_length=_MAX_PEM)
    """The node's private key in OpenSSH format. Whoever has it can act as this node."""
    ledger_key: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Public key with which the server signs the heads of its ledgers."""

    @field_validator("key")
    @classmethod
    def _is_a_key(cls, key: str) -> str:
        return _checked(check_node_key, key)

    @field_validator("ca_certificate")
    @classmethod
    def _is_a_certificate(cls, certificate: str) -> str:
        return _checked(check_certificate, certificate)

    def write(self, path: Path) -> None:
        """Write the kit to a file that only its owner can read."""
        atomic_write_bytes(path, self.model_dump_json(indent=2).encode(), mode=0o600)

    def fingerprint(self) -> str:
        """Return the fingerprint of the key, as the server's operator saw it."""
        return key_fingerprint(public_key_line(self.key.encode()))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the kit in a file.

        Raises:
            SettingsError: the file does not exist, or is incomplete.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as e:
            raise SettingsError(f"{path}: cannot be read ({e.strerror}); expected a kit of zk0bot server enroll") from e
        except UnicodeDecodeError as e:
            raise SettingsError(f"{path}: not a complete kit (no text); {_REQUEST}") from e
        except ValidationError as e:
            raise SettingsError(f"{path}: not a complete kit ({faults_by_field(e)}); {_REQUEST}") from e


def _checked(check: Callable[[bytes], None], text: str) -> str:
    try:
        check(text.encode())
    except SettingsError as e:
        raise ValueError(str(e)) from e
    return text
