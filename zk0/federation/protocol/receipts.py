"""A client's audit: the messages that it sent, and the receipts of its updates.

A receipt shows that an update is in the list of a round whose Merkle root it names. Where the server has signed that
root in a head of its ledger, it cannot name another list later. That the server has averaged the list is not shown.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from zk0.audit.journal import SentJournal, SentMessage
from zk0.audit.merkle import Receipt, verify_receipt
from zk0.errors import FederationError
from zk0.federation.protocol.sent_log import SENT_JOURNAL
from zk0.federation.protocol.shown_heads import SESSION_NAME, head_store
from zk0.records import Record, Update
from zk0.storage.atomic import atomic_write_text


class AuditedMessage(Record):
    """A message that a client sent, with the receipt of the update in it, if there is one."""

    sent: SentMessage
    receipt: Receipt | None
    root_signed: bool = False
    """The root of the receipt is that of a ledger head that the server has signed."""

    @property
    def update(self) -> Update | None:
        """The update that was sent; None for messages without one."""
        return _sent_update(self.sent)


def store_receipts(
    client: str, scratch: Path, session: str, receipts: Sequence[Receipt], *, must_be_signed: bool = False
) -> int:
    """Store a session's receipts where `audited_messages` reads them, and return their number.

    Args:
        client: its name.
        scratch: its folder.
        session: name of the session.
        receipts: from the server.
        must_be_signed: refuse a receipt of a round whose ledger head the server has not shown.

    Raises:
        FederationError: a receipt does not lead from the client's update to its root, its root is another one than in
            the ledger head of the round, or there is no such head; it is not stored.
        LedgerError: the journal was changed.
    """
    if not SESSION_NAME.fullmatch(session):
        raise FederationError(f"{client}: {session!r} is not a valid name of a session")
    messages = SentJournal(scratch / SENT_JOURNAL).read()
    sent = {m.round: update for m in messages if m.to == session and (update := _sent_update(m))}
    roots = _signed_roots(scratch, session)
    for receipt in receipts:
        if receipt.round not in sent:
            raise FederationError(f"{client}: a receipt of round {receipt.round}, in which it sent no update")
        if not verify_receipt(receipt, sent[receipt.round]):
            raise FederationError(
                f"{client}: the receipt of round {receipt.round} does not show its update in the list of the round: "
                f"its path does not lead to root {receipt.root[:12]}"
            )
        if must_be_signed and receipt.ledger_round not in roots:
            raise FederationError(
                f"{client}: a receipt of round {receipt.ledger_round}, whose ledger head the server has not shown"
            )
        if (signed := roots.get(receipt.ledger_round, receipt.root)) != receipt.root:
            raise FederationError(
                f"{client}: the receipt of round {receipt.ledger_round} has root {receipt.root[:12]}, "
                f"and the server signed {signed[:12]} in the head of its ledger"
            )
        target = _receipt_file(scratch, session, receipt.round)
        atomic_write_text(target, receipt.model_dump_json(indent=2))
    return len(receipts)


def audited_messages(scratch: Path) -> tuple[AuditedMessage, ...]:
    """Return every message that the client sent, oldest first; chain, signatures and receipts are checked.

    Raises:
        FederationError: no message was sent yet, or a stored receipt no longer fits its update and the signed heads.
        LedgerError: the journal was changed.
    """
    journal = SentJournal(scratch / SENT_JOURNAL)
    messages = journal.read()
    if not messages:
        raise FederationError(f"{journal.path}: no message was sent yet")
    roots = {session: _signed_roots(scratch, session) for session in {sent.to for sent in messages}}
    return tuple(_audited(scratch, sent, roots[sent.to]) for sent in messages)


def _audited(scratch: Path, sent: SentMessage, roots: Mapping[int, str]) -> AuditedMessage:
    receipt = _checked_receipt(scratch, sent)
    signed = roots.get(receipt.ledger_round) if receipt else None
    if receipt and signed not in (None, receipt.root):
        file = _receipt_file(scratch, sent.to, receipt.round)
        raise FederationError(f"{file}: has another root than the ledger head of round {receipt.ledger_round}")
    return AuditedMessage(sent=sent, receipt=receipt, root_signed=signed is not None)


def _signed_roots(scratch: Path, session: str) -> dict[int, str]:
    """Return the Merkle root of each round of which the client has stored a head, which was signed when it came."""
    if not SESSION_NAME.fullmatch(session):
        return {}
    heads = (one.head for one in head_store(scratch).read(session))
    return {head.rounds - 1: head.updates_root for head in heads if head.updates_root}


def _checked_receipt(scratch: Path, message: SentMessage) -> Receipt | None:
    update = _sent_update(message)
    if update is None or message.round is None:
        return None
    file = _receipt_file(scratch, message.to, message.round)
    if not file.is_file():
        return None
    receipt = Receipt.model_validate_json(file.read_text(encoding="utf-8"))
    if not verify_receipt(receipt, update):
        raise FederationError(f"{file}: its path does not lead from the update of round {message.round} to its root")
    return receipt


def _sent_update(message: SentMessage) -> Update | None:
    update = json.loads(message.text).get("update")
    return None if update is None else Update.model_validate_json(update)


def _receipt_file(scratch: Path, session: str, round_number: int) -> Path:
    return scratch / "receipts" / session / f"round_{round_number}.json"
