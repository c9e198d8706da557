"""What left a client, and which of it is proved to be in an average: its journal and its receipts, side by side."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from zk0.errors import FederationError
from zk0.federation.sent import JOURNAL
from zk0.folder import write_whole
from zk0.journal import Journal, Sent
from zk0.merkle import Receipt, proves
from zk0.records import Record, Update

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Audited(Record):
    """One message that left, and the receipt that proves its update to be in the round's average, if there is one."""

    sent: Sent
    receipt: Receipt | None

    @property
    def update(self) -> Update | None:
        """The update that was sent; None for messages without one."""
        return _update(self.sent)


def keep_receipts(client: str, scratch: Path, session: str, receipts: Sequence[Receipt]) -> int:
    """Write a session's receipts down where `audit` finds them; how many there are.

    Raises:
        FederationError: one does not prove that the update which was sent in that round was averaged; it is not kept.
        LedgerError: the journal was changed.
    """
    if not _SAFE_NAME.fullmatch(session):
        raise FederationError(f"{client}: {session!r} is no name of a session")
    sent = {s.round: update for s in Journal(scratch / JOURNAL).read() if s.to == session and (update := _update(s))}
    for receipt in receipts:
        if receipt.round not in sent:
            raise FederationError(f"{client}: a receipt of round {receipt.round}, in which it has sent nothing")
        if not proves(receipt, sent[receipt.round]):
            raise FederationError(
                f"{client}: the receipt of round {receipt.round} does not prove that its update was averaged: "
                f"its path does not lead to root {receipt.root[:12]}"
            )
        target = _receipt(scratch, session, receipt.round)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, receipt.model_dump_json(indent=2))
    return len(receipts)


def audit(scratch: Path) -> tuple[Audited, ...]:
    """Every message that left, oldest first: chain, signatures and receipts checked.

    Raises:
        FederationError: nothing has left from here, or a receipt that was kept proves nothing any longer.
        LedgerError: the journal was changed.
    """
    found = []
    for sent in Journal(scratch / JOURNAL).read():
        update = _update(sent)
        kept = _receipt(scratch, sent.to, sent.round) if update is not None and sent.round is not None else None
        receipt = None
        if update is not None and kept is not None and kept.is_file():
            receipt = Receipt.model_validate_json(kept.read_text(encoding="utf-8"))
            if not proves(receipt, update):
                raise FederationError(f"{kept}: does not prove that the update of round {sent.round} was averaged")
        found.append(Audited(sent=sent, receipt=receipt))
    if not found:
        raise FederationError(f"{scratch / JOURNAL}: nothing has left from here yet")
    return tuple(found)


def _update(sent: Sent) -> Update | None:
    said = json.loads(sent.text).get("update")
    return None if said is None else Update.model_validate_json(said)


def _receipt(scratch: Path, session: str, round_number: int) -> Path:
    return scratch / "receipts" / session / f"round_{round_number}.json"
