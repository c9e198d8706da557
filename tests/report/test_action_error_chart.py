"""The chart of the action error by joint and step, against the records."""

import pytest

from zk0.records import RoundRecord
from zk0.report.charts.action_error_chart import action_error_by_joint_figure
from zk0.report.charts.axes import figure_png
from zk0.report.palette import DARK_THEME, LIGHT_THEME

JOINTS = ("shoulder pan", "shoulder lift", "elbow flex", "wrist flex", "wrist roll", "gripper")


def test_bars_are_the_mean_over_sets_of_the_first_and_the_last_evaluated_round(history: list[RoundRecord]) -> None:
    by_joint, _ = action_error_by_joint_figure(history, JOINTS, "degrees").axes
    first, last = by_joint.containers
    # sets at 19.4 and 23.4 degrees in round 0, 7.15 and 11.15 in round 3, times the joint's factor
    factors = (0.7, 1.3, 1.2, 1.0, 0.8, 1.0)
    assert [bar.get_height() for bar in first] == pytest.approx([21.4 * f for f in factors])
    assert [bar.get_height() for bar in last] == pytest.approx([9.15 * f for f in factors])
    assert [label.get_text() for label in by_joint.get_xticklabels()] == list(JOINTS)


def test_lines_run_over_the_steps_of_the_chunk(history: list[RoundRecord]) -> None:
    _, by_step = action_error_by_joint_figure(history, JOINTS, "degrees").axes
    first, last = by_step.get_lines()
    assert list(first.get_xdata()) == [1, 2, 3]
    assert list(first.get_ydata()) == pytest.approx([21.4 * f for f in (0.6, 1.0, 1.4)])
    assert list(last.get_ydata()) == pytest.approx([9.15 * f for f in (0.6, 1.0, 1.4)])
    assert [text.get_text() for text in by_step.get_legend().get_texts()] == ["round 0", "round 3"]


def test_one_evaluated_round_and_none(history: list[RoundRecord]) -> None:
    by_joint, by_step = action_error_by_joint_figure(history[:1], JOINTS, "degrees").axes
    assert len(by_joint.containers) == len(by_step.get_lines()) == 1
    assert figure_png(action_error_by_joint_figure([], (), "degrees", DARK_THEME)) != figure_png(
        action_error_by_joint_figure([], (), "degrees", LIGHT_THEME)
    )


def test_the_footnote_of_every_chart_has_normalization_and_seed(history: list[RoundRecord]) -> None:
    from zk0.report.charts.cross_task_matrix import matrix_figure
    from zk0.report.charts.federated_metrics_chart import federated_metrics_figure
    from zk0.report.charts.session_charts import action_error_by_round_figure, policy_loss_figure

    figures = (
        policy_loss_figure(history),
        action_error_by_round_figure(history, "degrees"),
        federated_metrics_figure(history),
        action_error_by_joint_figure(history, JOINTS, "degrees"),
        matrix_figure(history, "pooled"),
        matrix_figure(history, "client"),
    )
    for figure in figures:
        assert "normalization pooled, seed 42, 8 times per frame" in figure.get_supxlabel()
