"""Signed journals of the messages between clients and server, one chained line a message (`zk0.audit.hash_chain`).

A client writes each of its answers to `sent.jsonl` before it sends it; a server writes each answer that it gets, and
whether it was used, to `accepted.jsonl`. Both can later prove what was exchanged. What the server's operator does is in
`operations.jsonl`, with the key `act`.

A line of `sent.jsonl` is `{"previous":"<64 hex digits>","sent":{...},"signature":"<128 hex digits>"}`; in
`accepted.jsonl` the key is `accepted`. The signature is Ed25519 (RFC 8032) over the bytes of the line before
`,"signature"`. The private key is created with the first line, is readable by its owner only, and never sent; the
public key lies beside it, for everybody who wants to check the lines.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pydantic import Field

from zk0.audit.hash_chain import (
    FIRST_PREVIOUS,
    ChainedLine,
    append_line,
    chained_line,
    check_chained,
    complete_lines,
    last_line_digest,
    line_digest,
    locked_file,
)
from zk0.errors import LedgerError
from zk0.records import Record
from zk0.storage.atomic import atomic_write_bytes

_SIGNATURE = b',"signature":"'


class SentWeights(Record):
    """The weights in a message."""

    tensors: int = Field(ge=0)
    values: int = Field(ge=0)
    bytes: int = Field(ge=0)
    """Bytes that are sent."""
    digest: str
    """Digest of the update."""


class SentMessage(Record):
    """One answer that a client sent."""

    at: str
    """ISO 8601 with time zone."""
    to: str
    """The session that the request came from."""
    kind: str
    """Kind of the request: join, train, evaluate, receipts, ..."""
    round: int | None
    text: str
    """The answer without its weights, exactly as it was sent: counts, moments, losses, norms."""
    weights: SentWeights | None = None
    asked: str = ""
    """The request: a plan or the terms of a session, as JSON without the pooled statistics."""
    asked_digest: str = ""
    """SHA-256 of the request's text, as the server sent it."""


class ReceivedAnswer(Record):
    """One answer that a server got from a client, or one that did not arrive, and whether it was used."""

    at: str
    """ISO 8601 with time zone."""
    session: str
    client: str
    kind: str
    """Kind of the request, as in `SentMessage`; "quarantine": an accepted update is rejected as a norm outlier."""
    round: int | None
    refusal: str = ""
    """Why the answer was rejected; empty: it was accepted."""
    text: str = ""
    """SHA-256 of `SentMessage.text` in the line that the client signed; empty: no answer arrived."""
    weights: str = ""
    """Digest of the accepted update."""
    bytes: int = Field(default=0, ge=0)
    """Bytes of the weights that were sent."""
    update_norm: float | None = None
    examples: int | None = None


class OperatorAct(Record):
    """One thing that the operator of a server did."""

    at: str
    """ISO 8601 with time zone."""
    user: str
    """Account on the server's machine."""
    act: Literal["init", "enroll", "revoke", "start", "stop"]
    detail: str
    """Settings as JSON (init), name and key fingerprint of a node (enroll, revoke), address (start)."""


class _Line(ChainedLine):
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")


@dataclass(frozen=True)
class SignedJournal[T: Record]:
    """Journal with entries of one type. Its file and its keys are created with the first entry."""

    path: Path
    entry_key: str
    """Key of an entry in its line."""
    entry_type: type[T]

    @property
    def private_key(self) -> Path:
        """File of the private key: 32 bytes, readable by its owner only."""
        return self.path.with_suffix(".key")

    @property
    def public_key(self) -> Path:
        """File of the public key: 64 hex digits."""
        return self.path.with_suffix(".pub")

    def append(self, entry: T) -> None:
        """Sign an entry, and append it to the file."""
        with locked_file(self.path) as handle:
            lines = complete_lines(self.path)
            text = chained_line(self.entry_key, entry, last_line_digest(lines))[:-1]
            signature = self._signing_key().sign(text).hex().encode()
            append_line(handle, lines, text + _SIGNATURE + signature + b'"}')

    def read(self) -> tuple[T, ...]:
        """All entries, oldest first, after a check of chain and signatures.

        Raises:
            LedgerError: a line was changed, removed or added, does not parse, or is not signed by this key.
        """
        lines = complete_lines(self.path)
        public = self._verification_key() if lines else None
        entries: list[T] = []
        previous = FIRST_PREVIOUS
        for number, text in enumerate(lines, start=1):
            line, entry = self._parse(text, number)
            check_chained(self.path, number, line.previous, previous)
            self._check_signature(public, text, number, line.signature)
            entries.append(entry)
            previous = line_digest(text)
        return tuple(entries)

    def _parse(self, text: bytes, number: int) -> tuple[_Line, T]:
        try:
            values = json.loads(text)
            entry = self.entry_type.model_validate_json(json.dumps(values.pop(self.entry_key)))
            return _Line.model_validate(values), entry
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise LedgerError(
                f"{self.path} line {number}: not an entry of the {self.entry_key} journal; it was changed"
            ) from e

    def _check_signature(self, public: Ed25519PublicKey | None, text: bytes, number: int, signature: str) -> None:
        try:
            if public is not None:
                public.verify(bytes.fromhex(signature), text.rpartition(_SIGNATURE)[0])
        except InvalidSignature as e:
            raise LedgerError(
                f"{self.path} line {number}: not signed by the key {self.public_key.name}; it was changed"
            ) from e

    def _verification_key(self) -> Ed25519PublicKey:
        try:
            return Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.public_key.read_text(encoding="ascii")))
        except (OSError, ValueError) as e:
            raise LedgerError(
                f"{self.public_key}: not a public key ({e}); expected the 64 hex digits written with the first line"
            ) from e

    def _signing_key(self) -> Ed25519PrivateKey:
        """The private key, created if missing; the caller holds the lock of the journal."""
        if not self.private_key.exists():
            key = Ed25519PrivateKey.generate()
            public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
            atomic_write_bytes(self.public_key, public.hex().encode())
            private = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
            atomic_write_bytes(self.private_key, private, mode=0o600)
        try:
            return Ed25519PrivateKey.from_private_bytes(self.private_key.read_bytes())
        except ValueError as e:
            raise LedgerError(
                f"{self.private_key}: not a signing key ({e}); restore it, or move {self.path.name} away"
            ) from e


class SentJournal(SignedJournal[SentMessage]):
    """A client's journal of the messages that it sent (`sent.jsonl`)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "sent", SentMessage)


class ReceivedJournal(SignedJournal[ReceivedAnswer]):
    """A server's journal of the answers that it got (`accepted.jsonl`)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "accepted", ReceivedAnswer)


class OperatorJournal(SignedJournal[OperatorAct]):
    """A journal of what the operator of a server did (`operations.jsonl`)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "act", OperatorAct)
