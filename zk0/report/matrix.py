"""Cross-task matrix: the loss of every client's task and of every unseen set under every judged global model."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from zk0.public import public_name
from zk0.records import Record, RoundRecord, SetScore
from zk0.report.chart import measured_under
from zk0.report.figures import DASH, fixed
from zk0.report.lines import dress, foot, short
from zk0.report.metrics import ordered
from zk0.report.palette import LIGHT, Theme
from zk0.report.tables import Cell, Column, Table, decimal, whole, words

MOST_COLUMNS = 8
"""Rounds that the table shows: the first, the last and some between."""
MOST_WRITTEN = 12
"""Rounds up to which the heat map writes its numbers down."""


class TaskRow(Record):
    """One task: the losses of its judging episodes, round by round."""

    task: str
    held_out_by: str | None
    """The client whose held-out episodes these are; None where no client has the data."""
    episodes: int
    losses: tuple[float | None, ...]


class Matrix(Record):
    """Tasks over judged rounds."""

    rounds: tuple[int, ...]
    rows: tuple[TaskRow, ...]


def cross_task_matrix(history: Sequence[RoundRecord]) -> Matrix:
    """Clients in the order of their names, then the unseen sets; None where nothing was measured."""
    judged = [r for r in ordered(history) if r.evaluation or r.client_evaluation]
    by_client = [{s.client: s.score for s in r.client_evaluation.scores} if r.client_evaluation else {} for r in judged]
    by_set = [{s.dataset: s for s in r.evaluation.sets} if r.evaluation else {} for r in judged]
    clients = sorted({name for scores in by_client for name in scores})
    sets = list(dict.fromkeys(name for scores in by_set for name in scores))
    rows = [_row(client, [scores.get(client) for scores in by_client]) for client in clients]
    rows += [_row(None, [scores.get(name) for scores in by_set]) for name in sets]
    return Matrix(rounds=tuple(r.round for r in judged), rows=tuple(rows))


def _row(client: str | None, scores: Sequence[SetScore | None]) -> TaskRow:
    known = [s for s in scores if s]
    return TaskRow(
        task=known[-1].dataset,
        held_out_by=client,
        episodes=len(known[-1].episodes),
        losses=tuple(s.policy_loss if s else None for s in scores),
    )


def matrix_table(history: Sequence[RoundRecord]) -> Table:
    """The matrix as a table, and how far each loss fell from the first to the last judged round."""
    matrix = cross_task_matrix(history)
    shown = np.unique(np.linspace(0, len(matrix.rounds) - 1, MOST_COLUMNS).round().astype(int)) if matrix.rounds else []
    columns = (
        Column(title="task", kind="text"),
        Column(title="held out by", kind="text"),
        Column(title="episodes"),
        *(Column(title=f"round {matrix.rounds[at]}", unit="policy loss") for at in shown),
        Column(title="last of first"),
    )
    rows = tuple(
        (
            words(public_name(row.task)),
            words(row.held_out_by or "nobody: unseen"),
            whole(row.episodes),
            *(decimal(row.losses[at], 3) for at in shown),
            _share(row.losses),
        )
        for row in matrix.rows
    )
    return Table(caption="Cross-task matrix", columns=columns, rows=rows)


def _share(losses: Sequence[float | None]) -> Cell:
    known = [loss for loss in losses if loss is not None]
    if len(known) < 2 or known[0] <= 0:
        return Cell(text=DASH)
    return Cell(text=f"{fixed(100 * known[-1] / known[0], 0)} %", key=known[-1] / known[0])


def matrix_figure(history: Sequence[RoundRecord], normalization: str, theme: Theme = LIGHT) -> Figure:
    """Heat map of the matrix: each row's loss as a share of that row's first one, the loss itself written inside."""
    matrix = cross_task_matrix(history)
    figure = Figure(figsize=(13, 1.9 + 0.42 * max(len(matrix.rows), 1)), facecolor=theme.card, layout="constrained")
    axes = figure.add_subplot()
    dress(axes, "Policy loss of every task under every global model", "", theme)
    axes.grid(visible=False)
    if not matrix.rows:
        axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", color=theme.muted)
        axes.set_yticks([])
        return figure
    losses = np.array([[np.nan if v is None else v for v in row.losses] for row in matrix.rows])
    shares = losses / _first(losses)[:, None]
    colours = LinearSegmentedColormap.from_list("falls", [theme.good, theme.card, theme.bad])
    drawn = axes.imshow(shares, cmap=colours, vmin=0.0, vmax=2.0, aspect="auto")
    step = max(1, len(matrix.rounds) // 20)
    axes.set_xticks(range(0, len(matrix.rounds), step), [str(r) for r in matrix.rounds[::step]])
    axes.set_yticks(range(len(matrix.rows)), [_label(row) for row in matrix.rows])
    if len(matrix.rounds) <= MOST_WRITTEN:
        for (y, x), loss in np.ndenumerate(losses):
            text = DASH if np.isnan(loss) else fixed(float(loss), 3)
            axes.text(x, y, text, ha="center", va="center", color=theme.ink, fontsize=9)
    bar = figure.colorbar(drawn, ax=axes, fraction=0.025, pad=0.01)
    bar.set_label("share of the row's first loss", color=theme.muted, fontsize=9)
    bar.ax.tick_params(colors=theme.muted, labelsize=8, length=0)
    bar.outline.set_visible(False)
    said = "Each client normalises by itself: rows are not comparable. " if normalization == "client" else ""
    judges = "Clients judge on their own held-out episodes and answer numbers only."
    foot(figure, f"{said}{measured_under(history)} {judges}", theme)
    return figure


def _label(row: TaskRow) -> str:
    return short(f"{row.held_out_by} (held out)" if row.held_out_by else f"{public_name(row.task)} (unseen)")


def _first(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """The first known loss of each row."""
    at = np.argmax(~np.isnan(losses), axis=1)
    first: NDArray[np.float64] = losses[np.arange(len(losses)), at]
    return np.where(first > 0, first, np.nan)
