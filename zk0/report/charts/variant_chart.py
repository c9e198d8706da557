"""Chart of a comparison of settings: the paired difference of each variant to the first one."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zk0.report.charts.axes import add_footnote, note_missing_values, style_axes
from zk0.report.charts.baseline_chart import PANELS
from zk0.report.palette import LIGHT_THEME, Theme
from zk0.stats.variant_comparison import VariantSummary


def variant_figure(summaries: Sequence[VariantSummary], footnote: str, theme: Theme = LIGHT_THEME) -> Figure:
    """One point and interval per variant and group: green if significantly better than the first variant, else orange
    if worse."""
    panels = [(panel, [s for s in summaries if s.metric == panel[0] and s.change is not None]) for panel in PANELS]
    most = max(1, *(len(rows) for _, rows in panels))
    figure = Figure(figsize=(13, 1.9 + 0.42 * most), facecolor=theme.card, layout="constrained")
    for axes, ((metric, title, _, scale), rows) in zip(figure.subplots(1, 2), panels, strict=True):
        style_axes(axes, title, "", theme)
        unit = "percentage points" if scale == 100.0 else "dimensionless"
        axes.set_xlabel(f"difference to the first variant ({unit})", color=theme.muted, fontsize=9.5)
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color=theme.line, linewidth=0.9)
        if rows:
            _draw_variants(axes, rows, (scale, metric == "success_rate"), theme)
        else:
            note_missing_values(axes, theme)
    add_footnote(figure, footnote, theme)
    return figure


def _draw_variants(axes: Axes, rows: Sequence[VariantSummary], metric: tuple[float, bool], theme: Theme) -> None:
    """`metric` is the scale of the metric and whether a higher value is better."""
    scale, higher_is_better = metric
    axes.axvline(0, color=theme.muted, linewidth=1.2)
    for y, row in enumerate(rows):
        ends, color = row.change_interval, theme.muted
        if ends is not None and not ends[0] <= 0 <= ends[1]:
            color = theme.good if (ends[0] > 0) == higher_is_better else theme.bad
        if ends is not None:
            axes.plot([scale * end for end in ends], [y, y], color=color, linewidth=2.2, solid_capstyle="round")
        axes.plot([scale * (row.change or 0.0)], [y], "o", color=color, markersize=7, markeredgecolor=theme.card)
    axes.set_yticks(range(len(rows)), [f"{row.variant} · {row.evaluated_on}" for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
