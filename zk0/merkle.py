"""Proof that an update was in an average, without showing anybody else's.

The tree is that of RFC 6962 (Certificate Transparency), section 2.1: SHA-256, leaves and inner nodes told apart by a
first byte, an odd end carried up as it is.
"""

import hashlib
import json
from collections.abc import Sequence

from pydantic import Field

from zk0.errors import LedgerError
from zk0.records import Record, RoundRecord, Update


class Receipt(Record):
    """What a client is told about its update of a round: enough to recompute the root that the ledger holds."""

    round: int = Field(ge=1)
    root: str
    """Of the tree over the round's updates, 64 hex digits."""
    index: int = Field(ge=0)
    updates: int = Field(ge=1)
    path: tuple[str, ...]
    """Digests of the neighbours on the way up, from the leaf on, 64 hex digits each."""


def leaf(update: Update) -> bytes:
    """What stands for an update in the tree: whose it is, from which weights to which, and how much it counts."""
    says = [update.client, update.round, update.global_digest, update.digest, update.examples]
    return json.dumps(says, ensure_ascii=False, separators=(",", ":")).encode()


def root(leaves: Sequence[bytes]) -> str:
    """The Merkle tree hash of the leaves in their order; that of no leaves is the digest of nothing.

    >>> root([])[:8], root([b""])[:8]
    ('e3b0c442', '6e340b9c')
    """
    return _root(leaves).hex()


def receipt(updates: Sequence[Update], client: str) -> Receipt:
    """The receipt of one client over the updates of a round, in the order of the round's record.

    Raises:
        LedgerError: the client has no update among them.
    """
    names = [update.client for update in updates]
    if client not in names:
        raise LedgerError(f"{client}: no update among those that were averaged ({', '.join(names) or 'none'})")
    leaves = [leaf(update) for update in updates]
    index = names.index(client)
    return Receipt(
        round=updates[index].round,
        root=root(leaves),
        index=index,
        updates=len(updates),
        path=tuple(digest.hex() for digest in _path(index, leaves)),
    )


def receipts(history: Sequence[RoundRecord], client: str) -> tuple[Receipt, ...]:
    """A client's receipts of all rounds in which its update was averaged, oldest first."""
    averaged = (record for record in history if any(update.client == client for update in record.updates))
    return tuple(receipt(record.updates, client) for record in averaged)


def proves(receipt: Receipt, update: Update) -> bool:
    """Whether the receipt proves that this very update is under its root (RFC 9162, section 2.1.3.2)."""
    at, last, found = receipt.index, receipt.updates - 1, _leaf(leaf(update))
    if at > last:
        return False
    for step in receipt.path:
        if last == 0:
            return False
        if at % 2 or at == last:
            found = _inner(bytes.fromhex(step), found)
            while at % 2 == 0 and at:
                at, last = at // 2, last // 2
        else:
            found = _inner(found, bytes.fromhex(step))
        at, last = at // 2, last // 2
    return last == 0 and found.hex() == receipt.root


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
