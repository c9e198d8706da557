"""Chart of a comparison of settings: the paired difference of each variant to the first one."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from zk0.report.charts.difference_chart import ShownDifference, difference_figure
from zk0.report.palette import LIGHT_THEME, Theme
from zk0.stats.variant_comparison import VariantSummary


def variant_figure(summaries: Sequence[VariantSummary], footnote: str, theme: Theme = LIGHT_THEME) -> Figure:
    """One point and interval per variant and group: green if significantly better than the first variant, else orange
    if worse."""
    shown = [
        ShownDifference(s.metric, f"{s.variant} · {s.evaluated_on}", s.change, s.change_interval)
        for s in summaries
        if s.change is not None
    ]
    return difference_figure(shown, "difference to the first variant", footnote, theme)
