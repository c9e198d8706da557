"""Chart of the action error: which joints miss, and how far ahead."""

from collections.abc import Sequence
from math import fsum

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zk0.records import Evaluation, RoundRecord
from zk0.report.chart import measured_under
from zk0.report.lines import dress, foot
from zk0.report.metrics import ordered
from zk0.report.palette import LIGHT, Theme


def action_error_figure(
    history: Sequence[RoundRecord], joints: Sequence[str], units: str, theme: Theme = LIGHT
) -> Figure:
    """Mean absolute action error by joint and by step of the chunk, first against last judged round.

    `joints` name the joints in order; they are drawn in `units`, a gripper in 0-100. Means are plain means over the
    evaluation sets, as those of `Evaluation` are.
    """
    judged = [r.evaluation for r in ordered(history) if r.evaluation]
    pair = [judged[0], judged[-1]] if len(judged) > 1 else judged
    figure = Figure(figsize=(13, 4.2), facecolor=theme.card, layout="constrained")
    by_joint, by_step = figure.subplots(1, 2)
    dress(by_joint, "Action error by joint", f"mean absolute error ({units}; gripper 0–100)", theme)
    dress(by_step, "Action error by step of the predicted chunk", f"mean absolute error ({units})", theme)
    by_joint.set_xlabel("")
    by_step.set_xlabel("steps ahead")
    colours = (theme.muted, theme.series[0])[-len(pair) :] if pair else ()
    _bars(by_joint, pair, joints, colours)
    for evaluation, colour in zip(pair, colours, strict=True):
        errors = mean_by_position([s.horizon_error_degrees for s in evaluation.sets])
        steps = range(1, len(errors) + 1)
        by_step.plot(steps, errors, color=colour, linewidth=2.2, label=f"round {evaluation.round}")
    for axes in (by_joint, by_step):
        if pair:
            axes.set_ylim(bottom=0)
            axes.legend(frameon=False, fontsize=9.5, labelcolor=theme.ink, loc="best")
        else:
            axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", color=theme.muted)
    said = "Open loop, on data that no client trained on; mean over the evaluation sets."
    foot(figure, f"{measured_under(history)} {said}", theme)
    return figure


def mean_by_position(rows: Sequence[Sequence[float]]) -> list[float]:
    """Mean of all rows at each position that every row reaches.

    >>> mean_by_position([(1.0, 2.0, 9.0), (3.0, 4.0)])
    [2.0, 3.0]
    """
    return [fsum(column) / len(rows) for column in zip(*rows, strict=False)]


def _bars(axes: Axes, pair: Sequence[Evaluation], joints: Sequence[str], colours: Sequence[str]) -> None:
    width = 0.8 / max(len(pair), 1)
    for index, (evaluation, colour) in enumerate(zip(pair, colours, strict=True)):
        errors = mean_by_position([s.joint_error_degrees for s in evaluation.sets])
        at = np.arange(len(errors)) + (index - (len(pair) - 1) / 2) * width
        faint = 0.5 if index < len(pair) - 1 else 1.0
        drawn = axes.bar(at, errors, width * 0.92, color=colour, alpha=faint, label=f"round {evaluation.round}")
        if len(errors) <= 8:
            axes.bar_label(drawn, fmt="%.1f", fontsize=8.5, color=axes.yaxis.label.get_color(), padding=2)
        if len(errors) == len(joints):
            axes.set_xticks(range(len(errors)), joints)
