"""Chart of the differences between the federated model and its baselines, with 95 % intervals."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from zk0.report.charts.difference_chart import ShownDifference, difference_figure
from zk0.report.palette import LIGHT_THEME, Theme
from zk0.stats.baseline_comparison import BaselineDifference


def baseline_difference_figure(
    differences: Sequence[BaselineDifference], footnote: str, theme: Theme = LIGHT_THEME
) -> Figure:
    """One point and interval per difference: green if the federated model is significantly better, orange if worse."""
    shown = [ShownDifference(d.metric, f"{d.baseline} · {d.evaluated_on}", d.change, d.interval) for d in differences]
    return difference_figure(shown, "federated − baseline", footnote, theme)
