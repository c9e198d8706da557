"""Receipts on a client's machine: proof that what it sent is in the averages that the ledger names."""

from collections.abc import Sequence
from pathlib import Path

from zk0.errors import FederationError
from zk0.folder import write_whole
from zk0.merkle import Receipt, proves
from zk0.records import Update


def keep_receipts(client: str, scratch: Path, receipts: Sequence[Receipt]) -> int:
    """Write receipts beside the rounds they are of; how many there are.

    Raises:
        FederationError: one does not prove that the update of that round was averaged; it is not kept.
    """
    for receipt in receipts:
        note = scratch / f"round_{receipt.round}.json"
        if not note.is_file():
            raise FederationError(f"{client}: a receipt of round {receipt.round}, in which it has sent nothing")
        if not proves(receipt, Update.model_validate_json(note.read_text(encoding="utf-8"))):
            raise FederationError(
                f"{client}: the receipt of round {receipt.round} does not prove that its update was averaged: "
                f"its path does not lead to root {receipt.root[:12]}"
            )
        write_whole(scratch / f"receipt_{receipt.round}.json", receipt.model_dump_json(indent=2))
    return len(receipts)
