"""What left a machine, and what a server took: one signed line a message, each chained to the one before (`zk0.chain`).

A line of a node's `sent.jsonl` is `{"previous":"<64 hex digits>","sent":{...},"signature":"<128 hex digits>"}`; in a
server's `accepted.jsonl` it says `accepted` instead of `sent`. The signature is Ed25519 (RFC 8032) over the bytes of
the line before `,"signature"`. The key is drawn with the first line, is readable by its owner alone and never leaves;
its public half lies beside it, for whoever wants to check the lines.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pydantic import Field

from zk0.chain import (
    START,
    ChainedLine,
    alone,
    append_line,
    check_chained,
    last_digest,
    line_digest,
    line_of,
    whole_lines,
)
from zk0.errors import LedgerError
from zk0.records import Record

_SIGNATURE = b',"signature":"'


class SentWeights(Record):
    """The weights in a message: how many tensors and values, bytes on the wire, and the digest of the update."""

    tensors: int = Field(ge=0)
    values: int = Field(ge=0)
    bytes: int = Field(ge=0)
    digest: str


class Sent(Record):
    """One message that left: all of its text, and what its weights are."""

    at: str
    """ISO 8601 with time zone."""
    to: str
    """The session that asked."""
    kind: str
    """What was asked: join, train, evaluate or receipts."""
    round: int | None
    text: str
    """The whole answer but for its weights, as it was sent: counts, moments, losses, norms."""
    weights: SentWeights | None = None


class Accepted(Record):
    """One answer of a client, and what became of it."""

    at: str
    """ISO 8601 with time zone."""
    session: str
    client: str
    kind: str
    """What was asked: join, train, evaluate, alone, joined, receipts; quarantine: an update is refused after all."""
    round: int | None
    refusal: str = ""
    """Why it was not taken; empty: it was."""
    text: str = ""
    """SHA-256 of the answer but for its weights: of `text` in the line that the client signed; empty: none came."""
    weights: str = ""
    """Digest of the update that was taken."""
    bytes: int = Field(default=0, ge=0)
    """Of the weights on the wire."""
    update_norm: float | None = None
    examples: int | None = None


class _Line(ChainedLine):
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")


@dataclass(frozen=True)
class SignedLines[T: Record]:
    """Entries of one kind in one file; it and its key are made with the first one."""

    path: Path
    name: str
    """Of an entry, in its line."""
    kind: type[T]

    @property
    def key(self) -> Path:
        """The private half of the signing key: 32 bytes, of its owner alone."""
        return self.path.with_suffix(".key")

    @property
    def public_key(self) -> Path:
        """The public half, as 64 hex digits."""
        return self.path.with_suffix(".pub")

    def append(self, entry: T) -> None:
        """Put an entry on the disk."""
        with alone(self.path) as handle:
            lines = whole_lines(self.path)
            text = line_of(self.name, entry, last_digest(lines))[:-1]
            signature = self._signing_key().sign(text).hex().encode()
            append_line(handle, lines, text + _SIGNATURE + signature + b'"}')

    def read(self) -> tuple[T, ...]:
        """Every entry, oldest first, checked.

        Raises:
            LedgerError: a line was changed, removed, added, does not parse, or is not signed by this key.
        """
        lines = whole_lines(self.path)
        public = self._public() if lines else None
        found: list[T] = []
        previous = START
        for number, text in enumerate(lines, start=1):
            line, entry = self._parsed(text, number)
            check_chained(self.path, number, line.previous, previous)
            self._check_signature(public, text, number, line.signature)
            found.append(entry)
            previous = line_digest(text)
        return tuple(found)

    def _parsed(self, text: bytes, number: int) -> tuple[_Line, T]:
        try:
            values = json.loads(text)
            entry = self.kind.model_validate_json(json.dumps(values.pop(self.name)))
            return _Line.model_validate(values), entry
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise LedgerError(f"{self.path} line {number}: not a message that was {self.name}; it was changed") from e

    def _check_signature(self, public: Ed25519PublicKey | None, text: bytes, number: int, signature: str) -> None:
        try:
            if public is not None:
                public.verify(bytes.fromhex(signature), text.rpartition(_SIGNATURE)[0])
        except InvalidSignature as e:
            raise LedgerError(
                f"{self.path} line {number}: not signed by the key {self.public_key.name}; it was changed"
            ) from e

    def _public(self) -> Ed25519PublicKey:
        try:
            return Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.public_key.read_text(encoding="ascii")))
        except (OSError, ValueError) as e:
            raise LedgerError(
                f"{self.public_key}: no public key ({e}); expected the 64 hex digits written with the first line"
            ) from e

    def _signing_key(self) -> Ed25519PrivateKey:
        """The key, drawn where there is none; called by one process at a time."""
        if not self.key.exists():
            key = Ed25519PrivateKey.generate()
            public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
            self.public_key.write_text(public.hex(), encoding="ascii")
            half = self.key.with_name(f"{self.key.name}.tmp")
            half.unlink(missing_ok=True)
            handle = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))
                os.fsync(handle)
            half.replace(self.key)
        try:
            return Ed25519PrivateKey.from_private_bytes(self.key.read_bytes())
        except ValueError as e:
            raise LedgerError(f"{self.key}: not a signing key ({e}); restore it or move {self.path.name} away") from e


class Journal(SignedLines[Sent]):
    """The messages that left a client."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "sent", Sent)


class AcceptedJournal(SignedLines[Accepted]):
    """The answers that a server got."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "accepted", Accepted)
