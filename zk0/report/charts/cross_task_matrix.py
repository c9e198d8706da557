"""Cross-task matrix: policy loss of every evaluated global model on every client's task and every unseen set."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from zk0.records import Record, RoundRecord, SetScore
from zk0.report.charts.axes import add_footnote, note_missing_values, shorten_label, style_axes
from zk0.report.charts.footnotes import evaluation_settings_note
from zk0.report.metrics import sorted_by_round
from zk0.report.number_format import DASH, fixed
from zk0.report.palette import LIGHT_THEME, Theme
from zk0.report.tables.rollout_tables import UNSEEN
from zk0.report.tables.table import Cell, Column, Table, decimal_cell, integer_cell, text_cell
from zk0.storage.redaction import public_name

MAX_TABLE_ROUNDS = 8
"""Rounds in the table: the first, the last and evenly spaced ones between."""
MAX_ANNOTATED_ROUNDS = 12
"""With more rounds, the heat map shows no numbers."""


class TaskRow(Record):
    """Losses of all evaluated rounds on the evaluation episodes of one task."""

    task: str
    held_out_by: str | None
    """The client that holds the episodes out; None for an unseen dataset."""
    episodes: int
    losses: tuple[float | None, ...]


class CrossTaskMatrix(Record):
    """Rows are tasks, columns the evaluated rounds."""

    rounds: tuple[int, ...]
    rows: tuple[TaskRow, ...]


def cross_task_matrix(history: Sequence[RoundRecord]) -> CrossTaskMatrix:
    """The matrix: clients in the order of their names, then the unseen sets. Missing losses are None."""
    evaluated = [r for r in sorted_by_round(history) if r.evaluation or r.client_evaluation]
    by_client = [
        {s.client: s.score for s in r.client_evaluation.scores} if r.client_evaluation else {} for r in evaluated
    ]
    by_set = [{s.dataset: s for s in r.evaluation.sets} if r.evaluation else {} for r in evaluated]
    clients = sorted({name for scores in by_client for name in scores})
    sets = list(dict.fromkeys(name for scores in by_set for name in scores))
    rows = [_row(client, [scores.get(client) for scores in by_client]) for client in clients]
    rows += [_row(None, [scores.get(name) for scores in by_set]) for name in sets]
    return CrossTaskMatrix(rounds=tuple(r.round for r in evaluated), rows=tuple(rows))


def _row(client: str | None, scores: Sequence[SetScore | None]) -> TaskRow:
    known = [s for s in scores if s]
    return TaskRow(
        task=known[-1].dataset,
        held_out_by=client,
        episodes=len(known[-1].episodes),
        losses=tuple(s.policy_loss if s else None for s in scores),
    )


def matrix_table(history: Sequence[RoundRecord]) -> Table:
    """The matrix as a table, with the last loss of each row in percent of its first."""
    matrix = cross_task_matrix(history)
    shown = (
        np.unique(np.linspace(0, len(matrix.rounds) - 1, MAX_TABLE_ROUNDS).round().astype(int)) if matrix.rounds else []
    )
    columns = (
        Column(title="task", kind="text"),
        Column(title="held out by", kind="text"),
        Column(title="episodes"),
        *(Column(title=f"round {matrix.rounds[at]}", unit="policy loss") for at in shown),
        Column(title="last loss", unit="relative to the first"),
    )
    rows = tuple(
        (
            text_cell(public_name(row.task)),
            text_cell(row.held_out_by or UNSEEN),
            integer_cell(row.episodes),
            *(decimal_cell(row.losses[at], 3) for at in shown),
            _relative_cell(row.losses),
        )
        for row in matrix.rows
    )
    return Table(caption="Cross-task matrix", columns=columns, rows=rows)


def _relative_cell(losses: Sequence[float | None]) -> Cell:
    known = [loss for loss in losses if loss is not None]
    if len(known) < 2 or known[0] <= 0:
        return Cell(text=DASH)
    return Cell(text=f"{fixed(100 * known[-1] / known[0], 0)} %", key=known[-1] / known[0])


def matrix_figure(history: Sequence[RoundRecord], normalization: str, theme: Theme = LIGHT_THEME) -> Figure:
    """Heat map of the matrix, colored by the loss relative to the first loss of its row and annotated with the loss."""
    matrix = cross_task_matrix(history)
    figure = Figure(figsize=(13, 1.9 + 0.42 * max(len(matrix.rows), 1)), facecolor=theme.card, layout="constrained")
    axes = figure.add_subplot()
    style_axes(axes, "Policy loss of every task under every global model", "", theme)
    axes.grid(visible=False)
    if not matrix.rows:
        note_missing_values(axes, theme)
        return figure
    losses = np.array([[np.nan if v is None else v for v in row.losses] for row in matrix.rows])
    relative = losses / _first_losses(losses)[:, None]
    colors = LinearSegmentedColormap.from_list("relative loss", [theme.good, theme.card, theme.bad])
    drawn = axes.imshow(relative, cmap=colors, vmin=0.0, vmax=2.0, aspect="auto")
    step = max(1, len(matrix.rounds) // 20)
    axes.set_xticks(range(0, len(matrix.rounds), step), [str(r) for r in matrix.rounds[::step]])
    axes.set_yticks(range(len(matrix.rows)), [_label(row) for row in matrix.rows])
    if len(matrix.rounds) <= MAX_ANNOTATED_ROUNDS:
        for (y, x), loss in np.ndenumerate(losses):
            text = DASH if np.isnan(loss) else fixed(float(loss), 3)
            axes.text(x, y, text, ha="center", va="center", color=theme.text, fontsize=9)
    bar = figure.colorbar(drawn, ax=axes, fraction=0.025, pad=0.01)
    bar.set_label("loss relative to the first of the row", color=theme.muted, fontsize=9)
    bar.ax.tick_params(colors=theme.muted, labelsize=8, length=0)
    bar.outline.set_visible(False)
    warning = "The rows are not comparable. " if normalization == "client" else ""
    source = "Clients evaluate on their own held-out episodes."
    add_footnote(figure, f"{warning}{evaluation_settings_note(history)} {source}", theme)
    return figure


def _label(row: TaskRow) -> str:
    return shorten_label(f"{row.held_out_by} (held out)" if row.held_out_by else f"{public_name(row.task)} (unseen)")


def _first_losses(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """First known loss of each row; NaN if it is not positive."""
    at = np.argmax(~np.isnan(losses), axis=1)
    first: NDArray[np.float64] = losses[np.arange(len(losses)), at]
    return np.where(first > 0, first, np.nan)
