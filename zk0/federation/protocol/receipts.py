"""A client's audit: the messages that it sent, and the receipts that prove its updates to be in a round's average."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from zk0.audit.journal import SentJournal, SentMessage
from zk0.audit.merkle import Receipt, verify_receipt
from zk0.errors import FederationError
from zk0.federation.protocol.sent_log import SENT_JOURNAL
from zk0.records import Record, Update
from zk0.storage.atomic import atomic_write_text

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class AuditedMessage(Record):
    """A message that a client sent, with the receipt of the update in it, if there is one."""

    sent: SentMessage
    receipt: Receipt | None

    @property
    def update(self) -> Update | None:
        """The update that was sent; None for messages without one."""
        return _sent_update(self.sent)


def store_receipts(client: str, scratch: Path, session: str, receipts: Sequence[Receipt]) -> int:
    """Store a session's receipts where `audited_messages` reads them, and return their number.

    Raises:
        FederationError: a receipt does not prove that the client's update of that round was averaged; it is not stored.
        LedgerError: the journal was changed.
    """
    if not _SAFE_NAME.fullmatch(session):
        raise FederationError(f"{client}: {session!r} is not a valid name of a session")
    messages = SentJournal(scratch / SENT_JOURNAL).read()
    sent = {m.round: update for m in messages if m.to == session and (update := _sent_update(m))}
    for receipt in receipts:
        if receipt.round not in sent:
            raise FederationError(f"{client}: a receipt of round {receipt.round}, in which it sent no update")
        if not verify_receipt(receipt, sent[receipt.round]):
            raise FederationError(
                f"{client}: the receipt of round {receipt.round} does not prove that its update was averaged: "
                f"its path does not lead to root {receipt.root[:12]}"
            )
        target = _receipt_file(scratch, session, receipt.round)
        atomic_write_text(target, receipt.model_dump_json(indent=2))
    return len(receipts)


def audited_messages(scratch: Path) -> tuple[AuditedMessage, ...]:
    """Return every message that the client sent, oldest first; chain, signatures and receipts are checked.

    Raises:
        FederationError: no message was sent yet, or a stored receipt does not prove its update any longer.
        LedgerError: the journal was changed.
    """
    journal = SentJournal(scratch / SENT_JOURNAL)
    found = tuple(AuditedMessage(sent=sent, receipt=_checked_receipt(scratch, sent)) for sent in journal.read())
    if not found:
        raise FederationError(f"{journal.path}: no message was sent yet")
    return found


def _checked_receipt(scratch: Path, message: SentMessage) -> Receipt | None:
    update = _sent_update(message)
    if update is None or message.round is None:
        return None
    file = _receipt_file(scratch, message.to, message.round)
    if not file.is_file():
        return None
    receipt = Receipt.model_validate_json(file.read_text(encoding="utf-8"))
    if not verify_receipt(receipt, update):
        raise FederationError(f"{file}: does not prove that the update of round {message.round} was averaged")
    return receipt


def _sent_update(message: SentMessage) -> Update | None:
    update = json.loads(message.text).get("update")
    return None if update is None else Update.model_validate_json(update)


def _receipt_file(scratch: Path, session: str, round_number: int) -> Path:
    return scratch / "receipts" / session / f"round_{round_number}.json"
