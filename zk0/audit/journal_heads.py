"""Signed heads of a journal: its length and the digest of its last line, which the other side stores.

The chain of a journal does not show that lines were removed from its end. The heads that its owner has sent do: a later
head has more lines, and the journal itself has the line that each head names.
"""

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self

from pydantic import Field

from zk0.audit.hash_chain import FIRST_PREVIOUS, complete_lines, line_digest
from zk0.audit.signing_key import SigningKey, is_signed
from zk0.records import Record

MAX_JOURNAL_LINES = 10**9
_PURPOSE = b"zk0 journal head\n"
"""Signed before each head, so that no other signature of the key is one of a head."""


class JournalHead(Record):
    """A journal of some length, as its owner states it."""

    lines: int = Field(strict=True, ge=0, le=MAX_JOURNAL_LINES)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the last line, which depends on all lines; 64 zeros of an empty journal."""
    key: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Public key of the journal."""
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")

    @classmethod
    def of(cls, lines: int, digest: str, key: SigningKey) -> Self:
        """Return the head of a journal with a number of lines and the digest of the last one."""
        key.create()
        unsigned = cls(lines=lines, digest=digest, key=key.public_hex(), signature="0" * 128)
        return unsigned.model_copy(update={"signature": key.sign(unsigned.content())})

    def content(self) -> bytes:
        """The bytes that are signed."""
        return _PURPOSE + json.dumps([self.lines, self.digest, self.key], separators=(",", ":")).encode()

    def is_signed(self) -> bool:
        """Whether the signature is that of the journal's key."""
        return is_signed(self.key, self.content(), self.signature)


def journal_problem(heads: Sequence[JournalHead], growth: int = 0) -> str:
    """Return why heads are not those of one growing journal; empty where they are.

    Args:
        heads: in the order in which they came.
        growth: lines that the journal gets at least between two of them.
    """
    for head in heads:
        if not head.is_signed():
            return f"its head of {head.lines} lines is not signed by the journal's key {head.key[:16]}"
    for before, after in pairwise(heads):
        if after.key != before.key:
            return f"it was begun again: its key was {before.key[:16]}, and is {after.key[:16]}"
        if after.lines < before.lines + growth:
            return f"it had at least {before.lines + growth} lines, and then {after.lines}: its end was removed"
        if after.lines == before.lines and after.digest != before.digest:
            return f"its {after.lines} lines were changed"
    return ""


def missing_heads(file: Path, public_hex: str, heads: Iterable[JournalHead]) -> str:
    """Return why a journal is not the one that heads were made of; empty where it is.

    Args:
        file: the journal, whose chain and signatures were checked.
        public_hex: its public key, 64 hex digits.
        heads: that its owner sent.
    """
    digests = [FIRST_PREVIOUS, *(line_digest(line) for line in complete_lines(file))]
    for head in heads:
        if head.key != public_hex:
            return f"is signed with the key {public_hex[:16]}, and was signed with {head.key[:16]}"
        if head.lines >= len(digests):
            return f"has {len(digests) - 1} lines, and had {head.lines}: its end was removed"
        if digests[head.lines] != head.digest:
            return f"has another line {head.lines} than it had: its end was removed or changed"
    return ""
