"""Merkle tree over the updates of a round, and the receipts that show a client its update in the list of the round.

The ledger holds the root of each round's tree. After the session every client gets a receipt for each of its updates:
the digests from which it recomputes the root. A receipt reveals no other client's update. It does not show that the
server has averaged the updates of its list.

The tree is that of RFC 6962 (Certificate Transparency), section 2.1: SHA-256, a different first byte for leaves and
inner nodes, and an odd last node moves up unchanged.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from zk0.errors import LedgerError
from zk0.records import MAX_INDEX, Record, RoundRecord, Update

HexDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 in hexadecimal."""
_MAX_PATH = 64
"""Digests of a path; that of MAX_INDEX updates has 24."""


class Receipt(Record):
    """Merkle audit path from one update to the root of its round's tree."""

    round: int = Field(ge=1, le=MAX_INDEX)
    """Of the update: the round in which the client began."""
    listed_in: int | None = Field(default=None, ge=1, le=MAX_INDEX)
    """Round whose line of the ledger lists the update, in buffered rounds a later one; None: `round`."""
    root: HexDigest
    """Root of the tree over the round's updates, 64 hex digits, as in the ledger."""
    index: int = Field(ge=0, le=MAX_INDEX)
    """Position of the update among the round's updates."""
    updates: int = Field(ge=1, le=MAX_INDEX)
    """Number of updates in the round."""
    path: tuple[HexDigest, ...] = Field(max_length=_MAX_PATH)
    """Digests of the sibling nodes from the leaf up to the root, 64 hex digits each."""

    @property
    def ledger_round(self) -> int:
        """Round whose line of the ledger has the root."""
        return self.listed_in or self.round


def update_leaf(update: Update) -> bytes:
    """Content of an update's leaf: client, round, digests of global weights and update, its weight, and its metrics."""
    values = [update.client, update.round, update.global_digest, update.digest, update.examples]
    metrics = update.metrics.model_dump(mode="json")
    return json.dumps([*values, metrics], ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def merkle_root(leaves: Sequence[bytes]) -> str:
    """Merkle tree hash of the leaves in their order, 64 hex digits; without leaves the digest of no bytes.

    >>> merkle_root([])[:8], merkle_root([b""])[:8]
    ('e3b0c442', '6e340b9c')
    """
    return _root(leaves).hex()


def make_receipt(updates: Sequence[Update], client: str, listed_in: int | None = None) -> Receipt:
    """The receipt of one client for a round, whose updates are in the order of the round's record.

    Args:
        updates: of the round.
        client: its name.
        listed_in: the round, which may be a later one than that in which an update began; None: that of the update.

    Raises:
        LedgerError: none of the updates is the client's.
    """
    names = [update.client for update in updates]
    if client not in names:
        raise LedgerError(f"{client}: no update among those that the round lists ({', '.join(names) or 'none'})")
    leaves = [update_leaf(update) for update in updates]
    index = names.index(client)
    return Receipt(
        round=updates[index].round,
        listed_in=None if listed_in == updates[index].round else listed_in,
        root=merkle_root(leaves),
        index=index,
        updates=len(updates),
        path=tuple(digest.hex() for digest in _path(index, leaves)),
    )


def client_receipts(history: Sequence[RoundRecord], client: str) -> tuple[Receipt, ...]:
    """The receipts of one client for all rounds that list its update, oldest first."""
    averaged = (record for record in history if any(update.client == client for update in record.updates))
    return tuple(make_receipt(record.updates, client, record.round) for record in averaged)


def verify_receipt(receipt: Receipt, update: Update) -> bool:
    """Whether the receipt's path leads from this update to the receipt's root: the update is in that tree.

    The algorithm is that of RFC 9162, section 2.1.3.2.
    """
    index, last, digest = receipt.index, receipt.updates - 1, _leaf(update_leaf(update))
    if index > last:
        return False
    for sibling in receipt.path:
        if last == 0:
            return False
        if index % 2 or index == last:
            digest = _inner(bytes.fromhex(sibling), digest)
            while index % 2 == 0 and index:
                index, last = index // 2, last // 2
        else:
            digest = _inner(digest, bytes.fromhex(sibling))
        index, last = index // 2, last // 2
    return last == 0 and digest.hex() == receipt.root


def _root(leaves: Sequence[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return _leaf(leaves[0])
    split = _split(len(leaves))
    return _inner(_root(leaves[:split]), _root(leaves[split:]))


def _path(index: int, leaves: Sequence[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    split = _split(len(leaves))
    if index < split:
        return [*_path(index, leaves[:split]), _root(leaves[split:])]
    return [*_path(index - split, leaves[split:]), _root(leaves[:split])]


def _split(count: int) -> int:
    """The largest power of two below `count`."""
    return 1 << (count - 1).bit_length() - 1


def _leaf(value: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + value).digest()


def _inner(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
