"""Chart of the differences between the federated model and its baselines, with 95 % intervals."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zk0.report.charts.axes import add_footnote, note_missing_values, style_axes
from zk0.report.palette import LIGHT_THEME, Theme
from zk0.stats.baseline_comparison import BaselineDifference

PANELS = (
    ("policy_loss", "Policy loss: lower is better", "federated − baseline (dimensionless)", 1.0),
    ("success_rate", "Success rate: higher is better", "federated − baseline (percentage points)", 100.0),
)
"""Metric, title, quantity on the x axis, scale."""


def baseline_difference_figure(
    differences: Sequence[BaselineDifference], footnote: str, theme: Theme = LIGHT_THEME
) -> Figure:
    """One point and interval per difference: green if the federated model is significantly better, orange if worse."""
    panels = [(panel, [d for d in differences if d.metric == panel[0]]) for panel in PANELS]
    most = max(len(rows) for _, rows in panels) if differences else 1
    figure = Figure(figsize=(13, 1.9 + 0.42 * most), facecolor=theme.card, layout="constrained")
    for axes, ((metric, title, quantity, scale), rows) in zip(figure.subplots(1, 2), panels, strict=True):
        style_axes(axes, title, "", theme)
        axes.set_xlabel(quantity, color=theme.muted, fontsize=9.5)
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color=theme.line, linewidth=0.9)
        if rows:
            _draw_points(axes, rows, (scale, metric == "success_rate"), theme)
        else:
            note_missing_values(axes, theme)
    add_footnote(figure, footnote, theme)
    return figure


def _draw_points(axes: Axes, rows: Sequence[BaselineDifference], metric: tuple[float, bool], theme: Theme) -> None:
    """`metric` is the scale of the metric and whether a higher value is better."""
    scale, higher_is_better = metric
    axes.axvline(0, color=theme.muted, linewidth=1.2)
    for y, row in enumerate(rows):
        color = _color(row, higher_is_better, theme)
        if row.interval is not None:
            ends = [scale * end for end in row.interval]
            axes.plot(ends, [y, y], color=color, linewidth=2.2, solid_capstyle="round")
        axes.plot([scale * row.change], [y], "o", color=color, markersize=7, markeredgecolor=theme.card)
    axes.set_yticks(range(len(rows)), [f"{row.baseline} · {row.evaluated_on}" for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)


def _color(row: BaselineDifference, higher_is_better: bool, theme: Theme) -> str:
    if row.interval is None or row.interval[0] <= 0 <= row.interval[1]:
        return theme.muted
    return theme.good if (row.interval[0] > 0) == higher_is_better else theme.bad
