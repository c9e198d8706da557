"""Chart of the action error by joint and by step of the predicted chunk."""

from collections.abc import Sequence
from math import fsum

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zk0.records import Evaluation, RoundRecord
from zk0.report.charts.axes import add_footnote, style_axes
from zk0.report.charts.footnotes import evaluation_settings_note
from zk0.report.metrics import sorted_by_round
from zk0.report.palette import LIGHT_THEME, Theme


def action_error_by_joint_figure(
    history: Sequence[RoundRecord], joints: Sequence[str], units: str, theme: Theme = LIGHT_THEME
) -> Figure:
    """Mean absolute action error by joint and by step of the chunk, for the first and the last evaluated round.

    Values are unweighted means over the evaluation sets, as in `Evaluation`.

    Args:
        history: of the session.
        joints: labels in the order of the joints.
        units: of the errors; those of a gripper are on its scale from 0 to 100.
        theme: colors.
    """
    evaluations = [r.evaluation for r in sorted_by_round(history) if r.evaluation]
    shown = [evaluations[0], evaluations[-1]] if len(evaluations) > 1 else evaluations
    figure = Figure(figsize=(13, 4.2), facecolor=theme.card, layout="constrained")
    by_joint, by_step = figure.subplots(1, 2)
    style_axes(by_joint, "Action error by joint", f"mean absolute error ({units}; gripper 0–100)", theme)
    style_axes(by_step, "Action error by step of the predicted chunk", f"mean absolute error ({units})", theme)
    by_joint.set_xlabel("")
    by_step.set_xlabel("steps ahead")
    colors = (theme.muted, theme.series[0])[-len(shown) :] if shown else ()
    _draw_bars(by_joint, shown, joints, colors)
    for evaluation, color in zip(shown, colors, strict=True):
        errors = mean_by_position([s.horizon_error_degrees for s in evaluation.sets])
        steps = range(1, len(errors) + 1)
        by_step.plot(steps, errors, color=color, linewidth=2.2, label=f"round {evaluation.round}")
    for axes in (by_joint, by_step):
        if shown:
            axes.set_ylim(bottom=0)
            axes.legend(frameon=False, fontsize=9.5, labelcolor=theme.text, loc="best")
        else:
            axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", color=theme.muted)
    data = "Open loop, on data that no client trained on; mean over the evaluation sets."
    add_footnote(figure, f"{evaluation_settings_note(history)} {data}", theme)
    return figure


def mean_by_position(rows: Sequence[Sequence[float]]) -> list[float]:
    """Mean over the rows at each position that exists in all rows.

    >>> mean_by_position([(1.0, 2.0, 9.0), (3.0, 4.0)])
    [2.0, 3.0]
    """
    return [fsum(column) / len(rows) for column in zip(*rows, strict=False)]


def _draw_bars(axes: Axes, shown: Sequence[Evaluation], joints: Sequence[str], colors: Sequence[str]) -> None:
    width = 0.8 / max(len(shown), 1)
    for index, (evaluation, color) in enumerate(zip(shown, colors, strict=True)):
        errors = mean_by_position([s.joint_error_degrees for s in evaluation.sets])
        x = np.arange(len(errors)) + (index - (len(shown) - 1) / 2) * width
        alpha = 0.5 if index < len(shown) - 1 else 1.0
        drawn = axes.bar(x, errors, width * 0.92, color=color, alpha=alpha, label=f"round {evaluation.round}")
        if len(errors) <= 8:
            axes.bar_label(drawn, fmt="%.1f", fontsize=8.5, color=axes.yaxis.label.get_color(), padding=2)
        if len(errors) == len(joints):
            axes.set_xticks(range(len(errors)), joints)
