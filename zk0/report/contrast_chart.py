"""Chart of the differences between the federated model and its baselines, with their intervals."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zk0.contrast import Contrast
from zk0.report.lines import dress, foot
from zk0.report.palette import LIGHT, Theme

PANELS = (
    ("policy_loss", "Policy loss: lower is better", "federated − baseline (dimensionless)", 1.0),
    ("success_rate", "Success rate: higher is better", "federated − baseline (percentage points)", 100.0),
)


def contrast_figure(rows: Sequence[Contrast], how: str, theme: Theme = LIGHT) -> Figure:
    """One point and interval a difference; green where federated is surely better, orange where surely worse."""
    shown = [(panel, [r for r in rows if r.metric == panel[0]]) for panel in PANELS]
    most = max(len(group) for _, group in shown) if rows else 1
    figure = Figure(figsize=(13, 1.9 + 0.42 * most), facecolor=theme.card, layout="constrained")
    for axes, ((metric, title, quantity, scale), group) in zip(figure.subplots(1, 2), shown, strict=True):
        dress(axes, title, "", theme)
        axes.set_xlabel(quantity, color=theme.muted, fontsize=9.5)
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color=theme.line, linewidth=0.9)
        if not group:
            axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", color=theme.muted)
            axes.set_yticks([])
            continue
        _points(axes, group, (scale, metric == "success_rate"), theme)
    foot(figure, how, theme)
    return figure


def _points(axes: Axes, group: Sequence[Contrast], scale_and_rising: tuple[float, bool], theme: Theme) -> None:
    scale, rising = scale_and_rising
    axes.axvline(0, color=theme.muted, linewidth=1.2)
    for y, row in enumerate(group):
        colour = _colour(row, rising, theme)
        if row.interval is not None:
            axes.plot(
                [scale * end for end in row.interval], [y, y], color=colour, linewidth=2.2, solid_capstyle="round"
            )
        axes.plot([scale * row.change], [y], "o", color=colour, markersize=7, markeredgecolor=theme.card)
    axes.set_yticks(range(len(group)), [f"{row.against} · {row.where}" for row in group])
    axes.set_ylim(len(group) - 0.4, -0.6)


def _colour(row: Contrast, rising: bool, theme: Theme) -> str:
    if row.interval is None or row.interval[0] <= 0 <= row.interval[1]:
        return theme.muted
    return theme.good if (row.interval[0] > 0) == rising else theme.bad
