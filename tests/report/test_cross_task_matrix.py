"""The cross-task matrix: losses of the ledger, and None for missing ones."""

import pytest

from zk0.records import RoundRecord
from zk0.report.charts.axes import figure_png
from zk0.report.charts.cross_task_matrix import cross_task_matrix, matrix_figure, matrix_table
from zk0.report.palette import DARK_THEME


def test_clients_and_unseen_sets_over_the_evaluated_rounds(history: list[RoundRecord]) -> None:
    found = cross_task_matrix(history[::-1])
    assert found.rounds == (0, 1, 3)
    held_out = {row.held_out_by: row.losses for row in found.rows[:4]}
    assert held_out == {
        "cloth": (2.0, None, 1.0),
        "lift": (1.6, None, 0.8),
        "place": (1.2, None, None),
        "stack": (0.8, None, 0.4),
    }
    unseen = {row.task: row.losses for row in found.rows[4:]}
    assert unseen["lab/so101-unseen"] == pytest.approx((1.114, 0.802, 0.555))
    assert [row.held_out_by for row in found.rows[4:]] == [None, None]


def test_the_table_has_public_dataset_names_and_relative_losses(history: list[RoundRecord]) -> None:
    heads, rows = matrix_table(history).as_text()
    assert heads[-2:] == ("round 3 (policy loss)", "last loss (relative to the first)")
    assert rows[0] == ("hf:lab/so101-cloth", "cloth", "5", "2.000", "–", "1.000", "50 %")
    assert rows[2] == ("local:place", "place", "5", "1.200", "–", "–", "–")
    assert rows[4][:2] == ("lab/so101-unseen", "none (unseen)")


def test_many_rounds_are_reduced_in_the_table_and_drawn_without_numbers(history: list[RoundRecord]) -> None:
    many = [history[0].model_copy(update={"round": number}) for number in range(40)]
    heads, _ = matrix_table(many).as_text()
    shown = [int(h.split()[1]) for h in heads if h.startswith("round")]
    assert (len(shown), shown[0], shown[-1]) == (8, 0, 39)
    axes = matrix_figure(many, "pooled").axes[0]
    assert len(axes.texts) == 0


def test_the_heat_map_shows_shares_of_the_first_loss(history: list[RoundRecord]) -> None:
    axes = matrix_figure(history, "pooled").axes[0]
    (image,) = axes.images
    shares = image.get_array()
    assert shares[0].tolist()[::2] == [1.0, 0.5]
    assert "2.000" in [text.get_text() for text in axes.texts]
    assert axes.get_yticklabels()[0].get_text() == "cloth (held out)"
    client = matrix_figure(history, "client")
    assert "rows are not comparable" in client.get_supxlabel()
    assert figure_png(matrix_figure([], "pooled", DARK_THEME))
