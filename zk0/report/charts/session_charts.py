"""Charts of policy loss and action error on unseen data by round. A round without a value is a gap in its series."""

from collections.abc import Callable, Sequence
from functools import partial
from math import nan
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zk0.errors import ReportError
from zk0.records import RoundRecord, SetScore
from zk0.report.charts.axes import (
    add_footnote,
    draw_series,
    figure_png,
    finish_axes,
    label_end_points,
    measured_points,
    shorten_label,
    style_axes,
)
from zk0.report.charts.federated_metrics_chart import federated_metrics_figure
from zk0.report.charts.footnotes import evaluation_settings_note
from zk0.report.metrics import sorted_by_round
from zk0.report.palette import LIGHT_THEME, Theme
from zk0.stats.intervals import EpisodeMetric, evaluation_estimate
from zk0.storage.atomic import atomic_write_bytes
from zk0.storage.redaction import public_name

CHART_FILES = ("policy_loss_chart.png", "action_error_chart.png", "federated_metrics.png")
"""In the session's folder: policy loss, action error, and the nine panels about clients and schedule, by round."""


def write_round_charts(history: Sequence[RoundRecord], units: str, folder: Path) -> None:
    """Draw the charts by round in the light theme, and write them into the session's folder as PNG.

    Raises:
        ReportError: a file cannot be written.
    """
    write_chart_files([figure_png(draw()) for draw in round_figures(history, units)], folder)


def write_chart_files(images: Sequence[bytes], folder: Path) -> None:
    """Write the PNGs of the charts by round, in the order of `CHART_FILES`.

    Raises:
        ReportError: a file cannot be written.
    """
    for name, content in zip(CHART_FILES, images, strict=True):
        atomic_write_bytes(folder / name, content, durable=False, error=ReportError)


def round_figures(history: Sequence[RoundRecord], units: str) -> tuple[Callable[..., Figure], ...]:
    """The functions that draw the charts by round, in the order of `CHART_FILES`; each has a parameter `theme`."""
    return (
        partial(policy_loss_figure, history),
        partial(action_error_by_round_figure, history, units),
        partial(federated_metrics_figure, history),
    )


def policy_loss_figure(history: Sequence[RoundRecord], theme: Theme = LIGHT_THEME) -> Figure:
    """Policy loss on unseen data by round: mean with its 95 % interval, and a thin line for each evaluation set."""
    figure, axes = _figure(theme)
    style_axes(axes, "Policy loss on unseen data", "policy loss (dimensionless)", theme)
    _draw_evaluations(axes, history, "policy_loss", theme)
    note = evaluation_settings_note(sorted_by_round(history))
    add_footnote(figure, note + " Round 0 is the start, before any training.", theme)
    return figure


def action_error_by_round_figure(history: Sequence[RoundRecord], units: str, theme: Theme = LIGHT_THEME) -> Figure:
    """Action error on unseen data by round: mean with its 95 % interval, and a thin line for each evaluation set."""
    figure, axes = _figure(theme)
    style_axes(axes, "Action error on unseen data", f"mean absolute error ({units}; gripper 0–100)", theme)
    _draw_evaluations(axes, history, "action_error_degrees", theme)
    note = evaluation_settings_note(sorted_by_round(history))
    add_footnote(figure, note + " The whole predicted chunk, open loop.", theme)
    return figure


def _figure(theme: Theme) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(10, 4.8), facecolor=theme.card, layout="constrained")
    return figure, figure.add_subplot()


def _draw_evaluations(axes: Axes, history: Sequence[RoundRecord], metric: EpisodeMetric, theme: Theme) -> None:
    rows = sorted_by_round(history)
    rounds = [r.round for r in rows]
    means = [nan if r.evaluation is None else float(getattr(r.evaluation, metric)) for r in rows]
    _draw_intervals(axes, rows, metric, theme)
    _draw_means(axes, rows, means, lambda score: float(getattr(score, metric)), theme)
    label_end_points(axes, rounds, means, theme)
    finish_axes(axes, rounds, theme)


def _draw_intervals(axes: Axes, rows: Sequence[RoundRecord], metric: EpisodeMetric, theme: Theme) -> None:
    rounds = [r.round for r in rows]
    intervals = [evaluation_estimate(r.evaluation, metric).interval if r.evaluation else None for r in rows]
    lower, upper = ([nan if ends is None else ends[side] for ends in intervals] for side in (0, 1))
    if measured_points(rounds, lower):
        color, label = theme.series[0], "95 % interval (Student's t over episodes)"
        axes.fill_between(rounds, lower, upper, color=color, alpha=0.18, linewidth=0, label=label)
        axes.vlines(rounds, lower, upper, color=color, alpha=0.55, linewidth=1.4)


def _draw_means(
    axes: Axes,
    rows: Sequence[RoundRecord],
    means: Sequence[float],
    set_value: Callable[[SetScore], float],
    theme: Theme,
) -> None:
    rounds = [r.round for r in rows]
    names = list(dict.fromkeys(s.dataset for r in rows if r.evaluation for s in r.evaluation.sets))
    if len(names) > 1:
        for index, name in enumerate(names, start=1):
            scores = [_set_score(r, name) for r in rows]
            values = [nan if score is None else set_value(score) for score in scores]
            draw_series(axes, rounds, values, (index, shorten_label(public_name(name))), theme)
    label = "mean over sets" if len(names) > 1 else shorten_label(public_name(next(iter(names), "server")))
    draw_series(axes, rounds, means, (0, label), theme).set(linewidth=2.6, markersize=7, zorder=5)


def _set_score(record: RoundRecord, dataset: str) -> SetScore | None:
    sets = record.evaluation.sets if record.evaluation else ()
    return next((s for s in sets if s.dataset == dataset), None)
