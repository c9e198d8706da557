"""Signed heads of a session's ledger: what a server commits to in front of its nodes after each round.

A head names a length of the ledger and the digest of its last line, and thereby the whole history up to there. Each
head holds the digest of the head before it. The server signs each with the key that nodes know from their enrolment
kits, and sends the newest one with each request. Two signed heads of one session that contradict each other
(`contradiction`) show that the server has shown two histories: to two nodes, or to one node at two times.

A head shows what the ledger said, and to whom. It does not show that the ledger is true: which updates the server has
really averaged can only be found by repeating the round from its files (`zk0 run --from`).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pydantic import Field

from zk0.audit.hash_chain import FIRST_PREVIOUS, ChainedLine, complete_lines, line_digest, parse_lines
from zk0.audit.signing_key import SigningKey, is_signed
from zk0.errors import LedgerError
from zk0.records import DIGEST_CHARACTERS, Record, RoundRecord
from zk0.storage.atomic import atomic_write_text

HEADS_FILE = "ledger_heads.jsonl"
"""Name of the file of a session's signed heads, beside its ledger."""
MAX_HEADS = 50_000
"""Rounds of a session for which a node accepts heads."""
_DIGEST = r"^[0-9a-f]{64}$"
_PURPOSE = b"zk0 ledger head\n"
"""Signed before each head, so that no other signature of the key is one of a head."""


class LedgerHead(Record):
    """A ledger of some length, as its server states it."""

    session: str = Field(max_length=200)
    rounds: int = Field(ge=1, le=MAX_HEADS)
    """Number of lines; the last one is of round `rounds - 1`."""
    root: str = Field(pattern=_DIGEST)
    """SHA-256 of the last line, which depends on all lines."""
    updates_root: str | None = Field(default=None, pattern=_DIGEST)
    """Root of the Merkle tree over the updates of the last round; None for round 0."""
    weights: str = Field(max_length=128, pattern=DIGEST_CHARACTERS)
    """Digest of the global weights after the last round."""
    previous: str = Field(pattern=_DIGEST)
    """Digest of the head with one line less; 64 zeros for the first one."""

    def content(self) -> bytes:
        """The bytes that are signed."""
        return _PURPOSE + json.dumps(self.model_dump(mode="json"), separators=(",", ":")).encode()

    def digest(self) -> str:
        """SHA-256 of the bytes that are signed."""
        return line_digest(self.content())


class SignedHead(Record):
    """A head with its server's signature."""

    head: LedgerHead
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")

    def is_signed_by(self, public_hex: str) -> bool:
        """Whether the signature is that of a public key (64 hex digits)."""
        return is_signed(public_hex, self.head.content(), self.signature)


class _LedgerLine(ChainedLine):
    record: RoundRecord


def ledger_heads(ledger: Path, session: str) -> tuple[LedgerHead, ...]:
    """Return the heads of a ledger at each of its lengths, in order.

    Raises:
        LedgerError: a line was changed, removed or added, or does not parse.
    """
    lines, heads, previous = complete_lines(ledger), list[LedgerHead](), FIRST_PREVIOUS
    for text, line in zip(lines, parse_lines(ledger, lines, _LedgerLine, "finished round"), strict=True):
        record = line.record
        heads.append(
            LedgerHead(
                session=session,
                rounds=len(heads) + 1,
                root=line_digest(text),
                updates_root=record.updates_root,
                weights=record.checkpoint.digest,
                previous=previous,
            )
        )
        previous = heads[-1].digest()
    return tuple(heads)


class HeadSigner:
    """Signs the heads of one session's ledger, and keeps them beside it in `ledger_heads.jsonl`."""

    def __init__(self, ledger: Path, session: str, key: SigningKey) -> None:
        self._ledger = ledger
        self._session = session
        self._key = key
        self._file = ledger.with_name(HEADS_FILE)
        self._signed_state: tuple[int, int] | None = None
        self._heads: tuple[SignedHead, ...] = ()

    def signed(self) -> tuple[SignedHead, ...]:
        """Return the signed heads of all lengths of the ledger; none while no round is finished.

        Raises:
            LedgerError: the ledger is broken, or no longer has lines of which heads were signed.
        """
        if not self._ledger.is_file():
            return ()
        stat = self._ledger.stat()
        if (state := (stat.st_size, stat.st_mtime_ns)) != self._signed_state:
            self._heads, self._signed_state = self._sign_new(), state
        return self._heads

    def _sign_new(self) -> tuple[SignedHead, ...]:
        heads = ledger_heads(self._ledger, self._session)
        known = read_heads(self._file) if self._file.is_file() else ()
        if [one.head for one in known] != list(heads[: len(known)]):
            raise LedgerError(
                f"{self._ledger}: its {len(heads)} lines are not those of the {len(known)} heads in {self._file.name}, "
                "which were signed and sent; restore the ledger"
            )
        new = [SignedHead(head=head, signature=self._key.sign(head.content())) for head in heads[len(known) :]]
        if new:
            write_heads(self._file, (*known, *new))
        return (*known, *new)


def contradiction(heads: Iterable[SignedHead]) -> str | None:
    """Return in which way signed heads of one session contradict each other; None where one history explains all.

    Signatures are not checked here.
    """
    by_rounds: dict[int, LedgerHead] = {}
    for head in (one.head for one in heads):
        if (other := by_rounds.setdefault(head.rounds, head)) != head:
            return f"{_named(other)} and {_named(head)}: two ledgers of the same length"
    for before, after in pairwise(sorted(by_rounds.values(), key=lambda head: head.rounds)):
        if after.rounds == before.rounds + 1 and after.previous != before.digest():
            return f"{_named(after)} does not follow {_named(before)}"
    return None


def _named(head: LedgerHead) -> str:
    return f"head {head.rounds} ({head.digest()[:12]})"


@dataclass(frozen=True)
class HeadStore:
    """The heads that one node was shown, one file a session: JSON lines of SignedHead."""

    folder: Path

    def sessions(self) -> tuple[str, ...]:
        """Names of the sessions of which there are heads."""
        return tuple(sorted(file.stem for file in self.folder.glob("*.jsonl")))

    def file(self, session: str) -> Path:
        """The heads of one session; to be compared with those of another node."""
        return self.folder / f"{session}.jsonl"

    def read(self, session: str) -> tuple[SignedHead, ...]:
        """The heads of one session, in the order in which they came."""
        return read_heads(self.file(session)) if self.file(session).is_file() else ()

    def add(self, session: str, heads: Sequence[SignedHead]) -> None:
        """Store heads that are not stored yet; contradictory ones, too, because two of them are the evidence."""
        known = self.read(session)
        new = [one for one in dict.fromkeys(heads) if one not in known]
        if new:
            write_heads(self.file(session), (*known, *new))


def read_heads(file: Path) -> tuple[SignedHead, ...]:
    """Return the heads in a file of a HeadStore.

    Raises:
        LedgerError: it cannot be read, or holds something else.
    """
    try:
        return tuple(SignedHead.model_validate_json(line) for line in file.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as e:
        raise LedgerError(
            f"{file}: not a file of ledger heads ({type(e).__name__}); expected lines of signed heads"
        ) from e


def write_heads(file: Path, heads: Sequence[SignedHead]) -> None:
    """Write heads to a file, a line each."""
    atomic_write_text(file, "".join(one.model_dump_json() + "\n" for one in heads))
