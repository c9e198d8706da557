"""Audit of a session's records without its tensors: ledger, signed heads, lists of updates, model cards, journals."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from zk0.audit import merkle
from zk0.audit.card_root import CardRoot
from zk0.audit.hash_chain import complete_lines, line_digest
from zk0.audit.journal import SentJournal
from zk0.audit.ledger import Ledger
from zk0.audit.ledger_heads import HEADS_FILE, ledger_heads, read_heads
from zk0.errors import LedgerError, Zk0Error
from zk0.records import Record, RoundRecord
from zk0.storage.session_folder import SessionFolder


class VerifiedPart(Record):
    """One verified part, or what is wrong with it."""

    name: str
    """A path relative to the verified folder."""
    covers: str
    """What a digest of this part covers."""
    problem: str | None = None

    def line(self) -> str:
        """Return the part in one line.

        >>> VerifiedPart(name="ledger.jsonl", covers="3 rounds").line()
        'ok      ledger.jsonl: 3 rounds'
        >>> VerifiedPart(name="ledger.jsonl", covers="", problem="line 2 was changed").line()
        'WRONG   ledger.jsonl: line 2 was changed'
        """
        return f"{'ok' if self.problem is None else 'WRONG':<8}{self.name}: {self.problem or self.covers}"


def verified_part(name: str, covers: str, check: Callable[[], object]) -> VerifiedPart:
    """Return a part after its check, with the error that it raised."""
    try:
        check()
    except Zk0Error as e:
        return VerifiedPart(name=name, covers=covers, problem=str(e))
    return VerifiedPart(name=name, covers=covers)


def audit_session(here: SessionFolder, key: str = "", shown: Sequence[Path] = ()) -> Iterator[VerifiedPart]:
    """Audit the records in a session's folder.

    Args:
        here: the folder.
        key: ledger key of the server, 64 hex digits; empty: signatures of heads are not checked.
        shown: files of heads that nodes were shown (`heads/SESSION.jsonl` of their folders).
    """
    try:
        history = Ledger(here.ledger).read()
    except LedgerError as e:
        yield VerifiedPart(name=here.ledger.name, covers="", problem=str(e))
        return
    root = Ledger(here.ledger).root()
    rounds = f"{len(history)} rounds, each line chained to the one before by SHA-256; root {root}"
    yield VerifiedPart(name=here.ledger.name, covers=rounds)
    yield from (part for record in history for part in _audit_updates(record))
    own = here.path / HEADS_FILE
    for heads in (*([own] if own.is_file() else []), *shown):
        signed = f"signed by the key {key[:16]}" if key else "signatures not checked (--key)"
        covers = f"its heads are those of the ledger, {signed}"
        name = heads.name if heads == own else str(heads)
        yield verified_part(name, covers, lambda heads=heads: check_heads_of_ledger(here.ledger, heads, key))  # type: ignore[misc]
    for card in sorted(here.path.glob("models/*/README.md")):
        yield from _audit_saved_card(here, card)
    for journal in sorted(here.path.glob("clients/*/sent.jsonl")):
        covers = "each answer chained by SHA-256 and signed with the client's key"
        yield verified_part(here.relative(journal), covers, SentJournal(journal).read)


def audit_card(ledger: Path, card: Path, name: str) -> VerifiedPart:
    """Audit the ledger root in a model card."""
    return verified_part(name, "its ledger root is that of the round in the ledger", lambda: check_card(ledger, card))


def check_card(ledger: Path, card: Path) -> None:
    """Raise unless a model card states a root of a ledger.

    Raises:
        LedgerError: it states another one, or none.
    """
    stated, lines = CardRoot.read(card), complete_lines(ledger)
    if stated.round >= len(lines):
        raise LedgerError(f"states a root of round {stated.round}, the ledger has {len(lines)} rounds")
    if (found := line_digest(lines[stated.round])) != stated.root:
        raise LedgerError(f"states root {stated.root[:12]} of round {stated.round}, the ledger has {found[:12]}")


def check_heads_of_ledger(ledger: Path, file: Path, key: str) -> None:
    """Raise unless all heads in a file are those of a ledger, and signed.

    Args:
        ledger: file of the ledger.
        file: the heads.
        key: that signed them, 64 hex digits; empty: signatures are not checked.

    Raises:
        LedgerError: the ledger was cut or rewritten after a head was signed, or a head is not signed by the key.
    """
    heads = read_heads(file)
    names = sorted({one.head.session for one in heads})
    if len(names) != 1:
        raise LedgerError(f"{file}: heads of {len(names)} sessions, expected those of one")
    if key and (bad := sum(not one.is_signed_by(key) for one in heads)):
        raise LedgerError(f"{bad} of {len(heads)} heads are not signed by the key {key[:16]}")
    lines = ledger_heads(ledger, names[0])
    for head in (one.head for one in heads):
        if head.rounds > len(lines):
            raise LedgerError(f"has a head of {head.rounds} lines, the ledger has {len(lines)}: its end was removed")
        if lines[head.rounds - 1] != head:
            raise LedgerError(f"the first {head.rounds} lines of the ledger are not those of its head")


def _audit_saved_card(here: SessionFolder, card: Path) -> Iterator[VerifiedPart]:
    """Audit the model card of a saved policy; a person may have edited it so that it states no root."""
    name = here.relative(card)
    try:
        states_root = CardRoot.find(card) is not None
    except LedgerError as e:
        yield VerifiedPart(name=name, covers="", problem=str(e))
        return
    if states_root:
        yield audit_card(here.ledger, card, name)


def _audit_updates(record: RoundRecord) -> Iterator[VerifiedPart]:
    """Audit the Merkle root over the updates of a round."""
    if record.updates_root is not None:
        leaves = [merkle.update_leaf(update) for update in record.updates]
        problem = None if merkle.merkle_root(leaves) == record.updates_root else "its updates have another root"
        covers = f"Merkle root of {len(leaves)} updates: client, round, digests, frames and metrics of each"
        yield VerifiedPart(name=f"round {record.round}", covers=covers, problem=problem)
