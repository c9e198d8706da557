"""The ledger root in a model card: which history the policy of a card says that it ends."""

import re
from pathlib import Path
from typing import Self

from pydantic import Field

from zk0.errors import LedgerError
from zk0.records import MAX_INDEX, Record

_LINE = re.compile(r"^Root of the session's ledger up to round (\d{1,8}): `([0-9a-f]{64})`$", re.MULTILINE)
_MAX_BYTES = 16 << 20


class CardRoot(Record):
    """Root of the ledger that ends with the round of a model card's policy."""

    round: int = Field(ge=0, le=MAX_INDEX)
    root: str = Field(pattern=r"^[0-9a-f]{64}$")

    def line(self) -> str:
        """Return the line of a model card that states the root.

        >>> CardRoot(round=3, root="0" * 64).line()[:51]
        "Root of the session's ledger up to round 3: `000000"
        """
        return f"Root of the session's ledger up to round {self.round}: `{self.root}`"

    @classmethod
    def read(cls, card: Path) -> Self:
        """Return the root that a model card states.

        Raises:
            LedgerError: the file cannot be read, or does not state one root.
        """
        if (found := cls.find(card)) is None:
            raise LedgerError(f"{card}: states no ledger root, expected one, as model cards of zk0 do")
        return found

    @classmethod
    def find(cls, card: Path) -> Self | None:
        """Return the root that a model card states; None where it states none, because a person has edited it.

        Raises:
            LedgerError: the file cannot be read, or states several roots.
        """
        try:
            with card.open("rb") as file:
                found = _LINE.findall(file.read(_MAX_BYTES).decode())
        except (OSError, UnicodeDecodeError) as e:
            raise LedgerError(f"{card}: cannot be read as a model card ({type(e).__name__})") from e
        if len(found) > 1:
            raise LedgerError(f"{card}: states {len(found)} ledger roots, expected one")
        if not found:
            return None
        return cls(round=int(found[0][0]), root=found[0][1])
