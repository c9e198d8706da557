"""Table of a report: columns and cells, rendered as HTML by the pages and as Markdown by `markdown`."""

from typing import Literal

from zk0.records import Evaluation, Record, SetScore
from zk0.report.number_format import DASH, count, fixed, number, plus_minus
from zk0.stats.intervals import EpisodeMetric, Estimate, evaluation_estimate, set_estimate


class Column(Record):
    """Title and unit of a column; `kind` decides alignment and sorting."""

    title: str
    unit: str = ""
    kind: Literal["text", "number", "code"] = "number"

    @property
    def heading(self) -> str:
        """Title and unit on one line."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


class Cell(Record):
    """Displayed text and sort key; a missing value has the key None and is sorted last."""

    text: str
    key: float | str | None = None


class Table(Record):
    """Rows of cells; the first column names the row."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def as_text(self) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
        """Headings and rows as text."""
        return tuple(c.heading for c in self.columns), tuple(tuple(c.text for c in row) for row in self.rows)


def text_cell(text: str) -> Cell:
    """A cell with text, sorted without regard to case."""
    return Cell(text=text, key=text.casefold())


def integer_cell(value: int | None) -> Cell:
    """A cell with an integer."""
    return Cell(text=count(value), key=value)


def decimal_cell(value: float | None, places: int) -> Cell:
    """A cell with a fixed number of decimals."""
    return Cell(text=fixed(value, places), key=value)


def number_cell(value: float | None) -> Cell:
    """A cell with four significant digits."""
    return Cell(text=number(value), key=value)


def mean_cell(scored: Evaluation | SetScore | None, metric: EpisodeMetric, places: int) -> Cell:
    """A cell with the mean of an evaluation or of one evaluation set, ± half the width of its 95 % interval."""
    if scored is None:
        return Cell(text=DASH)
    value = scored.policy_loss if metric == "policy_loss" else scored.action_error_degrees
    estimate = set_estimate(scored, metric) if isinstance(scored, SetScore) else evaluation_estimate(scored, metric)
    return Cell(text=plus_minus(value, estimate.half_width, places), key=value)


def estimate_cell(estimate: Estimate, places: int) -> Cell:
    """A cell with an estimate and the ends of its 95 % interval."""
    return interval_cell(estimate.value, estimate.interval, places)


def interval_cell(value: float | None, ends: tuple[float, float] | None, places: int) -> Cell:
    """A cell with a value and the ends of its interval, if it has one."""
    if value is None:
        return Cell(text=DASH)
    text = fixed(value, places)
    if ends is not None:
        text += f" ({fixed(ends[0], places)} to {fixed(ends[1], places)})"
    return Cell(text=text, key=value)
