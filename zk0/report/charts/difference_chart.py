"""Chart of differences in loss and success rate with their 95 % intervals, a panel for each."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zk0.report.charts.axes import add_footnote, note_missing_values, style_axes
from zk0.report.palette import LIGHT_THEME, Theme

PANELS = (
    ("policy_loss", "Policy loss: lower is better", "dimensionless", 1.0),
    ("success_rate", "Success rate: higher is better", "percentage points", 100.0),
)
"""Metric, title, unit of the x axis, scale."""


class ShownDifference(NamedTuple):
    """One difference as the chart shows it."""

    metric: str
    label: str
    change: float
    interval: tuple[float, float] | None


def difference_figure(
    differences: Sequence[ShownDifference], quantity: str, footnote: str, theme: Theme = LIGHT_THEME
) -> Figure:
    """One point and interval per difference: green if significantly better, orange if worse.

    Args:
        differences: rows from top to bottom; metrics without a panel are left out.
        quantity: what the x axis shows, without its unit.
        footnote: below the panels.
        theme: colors.
    """
    panels = [(panel, [d for d in differences if d.metric == panel[0]]) for panel in PANELS]
    most = max(1, *(len(rows) for _, rows in panels))
    figure = Figure(figsize=(13, 1.9 + 0.42 * most), facecolor=theme.card, layout="constrained")
    for axes, ((metric, title, unit, scale), rows) in zip(figure.subplots(1, 2), panels, strict=True):
        style_axes(axes, title, "", theme)
        axes.set_xlabel(f"{quantity} ({unit})", color=theme.muted, fontsize=9.5)
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color=theme.line, linewidth=0.9)
        if rows:
            _draw_points(axes, rows, (scale, metric == "success_rate"), theme)
        else:
            note_missing_values(axes, theme)
    add_footnote(figure, footnote, theme)
    return figure


def _draw_points(axes: Axes, rows: Sequence[ShownDifference], metric: tuple[float, bool], theme: Theme) -> None:
    """`metric` is the scale of the metric and whether a higher value is better."""
    scale, higher_is_better = metric
    axes.axvline(0, color=theme.muted, linewidth=1.2)
    for y, row in enumerate(rows):
        color = _color(row.interval, higher_is_better, theme)
        if row.interval is not None:
            ends = [scale * end for end in row.interval]
            axes.plot(ends, [y, y], color=color, linewidth=2.2, solid_capstyle="round")
        axes.plot([scale * row.change], [y], "o", color=color, markersize=7, markeredgecolor=theme.card)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)


def _color(interval: tuple[float, float] | None, higher_is_better: bool, theme: Theme) -> str:
    if interval is None or interval[0] <= 0 <= interval[1]:
        return theme.muted
    return theme.good if (interval[0] > 0) == higher_is_better else theme.bad
