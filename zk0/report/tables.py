"""A table of a report: the same cells for the page and for Markdown."""

from typing import Literal

from zk0.interval import Z_95
from zk0.records import Record
from zk0.report.figures import count, fixed, number, plus_minus


class Column(Record):
    """One head: what it holds and in which unit."""

    title: str
    unit: str = ""
    kind: Literal["text", "number", "code"] = "number"

    @property
    def head(self) -> str:
        """Title and unit on one line."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


class Cell(Record):
    """What is shown, and what it is sorted by (None: missing, always last)."""

    text: str
    key: float | str | None = None


class Table(Record):
    """Rows of cells under columns; the first column names the row."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def plain(self) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
        """Heads and rows as text."""
        return tuple(c.head for c in self.columns), tuple(tuple(c.text for c in row) for row in self.rows)


def words(text: str) -> Cell:
    """A cell that is sorted as text."""
    return Cell(text=text, key=text.casefold())


def whole(value: int | None) -> Cell:
    """A cell with a whole number."""
    return Cell(text=count(value), key=value)


def decimal(value: float | None, places: int) -> Cell:
    """A cell with a fixed number of decimals."""
    return Cell(text=fixed(value, places), key=value)


def free(value: float | None) -> Cell:
    """A cell with as many digits as the number needs."""
    return Cell(text=number(value), key=value)


def bounded(value: float | None, se: float | None, places: int = 3) -> Cell:
    """A cell with a number and its 95 % interval."""
    return Cell(text=plus_minus(value, half_width(se), places), key=value)


def half_width(se: float | None) -> float | None:
    """Half of a 95 % interval."""
    return None if se is None else Z_95 * se
