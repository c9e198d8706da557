"""Signed journals of the messages between clients and server, one chained line a message (`zk0.audit.hash_chain`).

A client writes each of its answers to `sent.jsonl` before it sends it; a server writes each answer that it gets, and
whether it was used, to `accepted.jsonl`. The two can be compared line by line. What the owner of a journal's key leaves
out of it, or removes at its end, the journal alone does not show; therefore each side stores the heads of the other
one's journal (`zk0.audit.journal_heads`). What the server's operator does is in `operations.jsonl`, with the key `act`.

A line of `sent.jsonl` is `{"previous":"<64 hex digits>","sent":{...},"signature":"<128 hex digits>"}`; in
`accepted.jsonl` the key is `accepted`. The signature is Ed25519 (RFC 8032) over the bytes of the line before
`,"signature"`. The private key is created with the first line, is readable by its owner only, and never sent; the
public key lies beside it, for everybody who wants to check the lines.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from zk0.audit.hash_chain import (
    FIRST_PREVIOUS,
    ChainedLine,
    append_line,
    chained_line,
    check_chained,
    complete_lines,
    count_lines,
    digest_after,
    last_complete_line,
    line_digest,
    locked_file,
    newest_lines,
)
from zk0.audit.journal_heads import JournalHead
from zk0.audit.signing_key import SigningKey, is_signed
from zk0.errors import LedgerError
from zk0.records import Record

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
    """The request: a plan or the terms of a session, as JSON with a digest of the statistics instead of them."""
    asked_digest: str = ""
    """SHA-256 of the request's text, as the server sent it."""
    ledger_head: str = ""
    """Digest of the newest head of the server's ledger that came with the request (`zk0.audit.ledger_heads`)."""
    server_journal: JournalHead | None = None
    """Head of the server's journal that came with the request."""

    def asked_values(self) -> dict[str, Any]:
        """Return the values of the request; none where its text was cut."""
        try:
            values = json.loads(self.asked or "{}")
        except (ValueError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}


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
    client_journal: JournalHead | None = None
    """Head of the client's journal before this answer, which came with it."""
    in_order: bool = True
    """False: the client may have sent answers later that the server received before this one (buffered rounds)."""
    operations: JournalHead | None = None
    """Head of the server's `operations.jsonl`, in the first answer of a session, and whenever it has grown since."""


class OperatorAct(Record):
    """One thing that the operator of a server did."""

    at: str
    """ISO 8601 with time zone."""
    user: str
    """Account on the server's machine."""
    act: Literal["init", "enroll", "revoke", "start", "stop"]
    detail: str
    """Settings as JSON (init, start), name and key fingerprint of a node (enroll, revoke), what ended it (stop)."""


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

    @property
    def _key(self) -> SigningKey:
        return SigningKey(self.private_key, self.public_key)

    def append(self, entry: T) -> None:
        """Sign an entry, and append it to the file."""
        with locked_file(self.path) as handle:
            last, end = last_complete_line(self.path)
            text = chained_line(self.entry_key, entry, digest_after(last))[:-1]
            append_line(handle, end, text + _SIGNATURE + self._key.sign(text).encode() + b'"}')

    def head(self) -> JournalHead:
        """The signed head of the journal, for the other side."""
        last, end = last_complete_line(self.path)
        return JournalHead.of(count_lines(self.path, end), digest_after(last), self._key)

    def newest_first(self) -> Iterator[T]:
        """Entries from the last one on, without a check of chain and signatures.

        Raises:
            LedgerError: a line does not parse.
        """
        for text, end in newest_lines(self.path):
            try:
                entry = self._parse(text, 0)[1]
            except LedgerError:
                self._parse(text, count_lines(self.path, end))  # raises an error with the line's number
                raise
            yield entry

    def read(self) -> tuple[T, ...]:
        """All entries, oldest first, after a check of chain and signatures.

        Raises:
            LedgerError: a line was changed, removed or added, does not parse, or is not signed by this key.
        """
        lines = complete_lines(self.path)
        public = self._key.public_hex() if lines else ""
        entries: list[T] = []
        previous = FIRST_PREVIOUS
        for number, text in enumerate(lines, start=1):
            line, entry = self._parse(text, number)
            check_chained(self.path, number, line.previous, previous)
            if not is_signed(public, text.rpartition(_SIGNATURE)[0], line.signature):
                name = self.public_key.name
                raise LedgerError(f"{self.path} line {number}: not signed by the key {name}; it was changed")
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
