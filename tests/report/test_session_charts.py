"""Charts by round against the ledger; a missing number is a gap."""

from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from scipy.stats import t

from zk0.errors import ReportError
from zk0.records import Contribution, RoundRecord
from zk0.report.charts.axes import MAX_DRAWN_CLIENTS, MAX_NAMED_CLIENTS, figure_png, shorten_label
from zk0.report.charts.federated_metrics_chart import federated_metrics_figure
from zk0.report.charts.footnotes import evaluation_settings_note
from zk0.report.charts.session_charts import (
    CHART_FILES,
    action_error_by_round_figure,
    policy_loss_figure,
    write_round_charts,
)
from zk0.report.page.session_page_charts import SessionPageCharts
from zk0.report.palette import DARK_THEME
from zk0.settings.session import Session


def drawn(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """x and y of every named line, by label."""
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    return {
        name: ([float(v) for v in line.get_xdata()], [float(v) for v in line.get_ydata()])
        for name, line in lines.items()
        if not name.startswith("_")
    }


def test_the_loss_is_drawn_from_round_0_with_a_gap_for_a_missing_evaluation(history: list[RoundRecord]) -> None:
    rounds, loss = drawn(policy_loss_figure(history).axes[0])["mean over sets"]
    assert rounds == [0, 1, 2, 3]
    assert loss[:2] == [1.214, 0.902]
    assert isnan(loss[2])
    assert loss[3] == 0.655


def test_every_set_has_its_own_line(history: list[RoundRecord]) -> None:
    lines = drawn(policy_loss_figure(history).axes[0])
    np.testing.assert_allclose(lines["lab/so101-unseen"][1], [1.114, 0.802, np.nan, 0.555])
    np.testing.assert_allclose(lines["sim:place-held-out"][1], [1.314, 1.002, np.nan, 0.755])


def test_the_band_is_students_interval_over_episodes(history: list[RoundRecord]) -> None:
    (band,) = [c for c in policy_loss_figure(history).axes[0].collections if isinstance(c, PolyCollection)]
    at_start = [y for path in band.get_paths() for x, y in path.vertices if x == 0]
    dof = 4 * (1.2**2 + 1.5**2) ** 2 / (1.2**4 + 1.5**4)
    half_width = t(dof).ppf(0.975) * 0.030 * (1.2**2 + 1.5**2) ** 0.5 / 2
    assert (min(at_start), max(at_start)) == pytest.approx((1.214 - half_width, 1.214 + half_width), abs=1e-5)


def test_no_band_for_single_episodes(history: list[RoundRecord]) -> None:
    single = []
    for r in history:
        sets = tuple(
            s.model_copy(update={"episodes": s.episodes[:1]}) for s in (r.evaluation.sets if r.evaluation else ())
        )
        evaluation = r.evaluation and r.evaluation.model_copy(update={"sets": sets})
        single.append(r.model_copy(update={"evaluation": evaluation}))
    assert not [c for c in policy_loss_figure(single).axes[0].collections if isinstance(c, PolyCollection)]


def test_the_order_of_the_records_does_not_matter(history: list[RoundRecord]) -> None:
    assert figure_png(policy_loss_figure(history[::-1]), 40) == figure_png(policy_loss_figure(history), 40)


def test_a_rejected_update_is_a_gap_in_all_panels(history: list[RoundRecord]) -> None:
    losses, held_out, _, norms, cosines, _, proximal = federated_metrics_figure(history).axes
    np.testing.assert_allclose(drawn(losses)["place"][1], [np.nan, 0.92, 0.71, np.nan])
    np.testing.assert_allclose(drawn(norms)["place"][1], [np.nan, 0.8 + 0.1, 0.4 + 0.1, np.nan])
    np.testing.assert_allclose(drawn(norms)["global model"][1], [np.nan, 0.7, 0.35, 0.7 / 3])
    np.testing.assert_allclose(drawn(cosines)["stack"][1], [np.nan, np.nan, 0.6, 0.7])
    np.testing.assert_allclose(drawn(held_out)["place"][1], [1.2, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(drawn(held_out)["cloth"][1], [2.0, np.nan, np.nan, 1.0])
    np.testing.assert_allclose(drawn(proximal)["lift"][1], [np.nan, 0.004, 0.004, 0.004])


def test_shares_of_the_delta_are_drawn_for_a_weighted_mean(history: list[RoundRecord]) -> None:
    """Two clients with orthogonal deltas of norm 1 and equal weights: D has norm 1 / sqrt 2."""
    even_weight = {"weight": 0.5, "update_norm": 1.0, "cosine_to_mean": 0.5**0.5}
    both = tuple(Contribution(client=c, **even_weight) for c in ("lift", "stack"))
    even = history[1].model_copy(update={"contributions": both, "param_update_norm": 0.5**0.5})
    shares, without = (panel(federated_metrics_figure([history[0], even]), t) for t in (SHARE, "Leave-one-out shift"))
    np.testing.assert_allclose(drawn(shares)["lift"][1], [np.nan, 0.5])
    np.testing.assert_allclose(drawn(without)["stack"][1], [np.nan, 1.0])
    assert panel(federated_metrics_figure(history), SHARE) is None  # the shares of these do not sum to 1


SHARE = "Share of the aggregated delta"


def panel(figure: Figure, title: str) -> Any:
    """The axes with a title; None if there are none."""
    return next((axes for axes in figure.axes if axes.get_title(loc="left") == title), None)


def test_constant_schedules_are_told_instead_of_drawn(history: list[RoundRecord]) -> None:
    """A learning rate of one client's own is drawn nonetheless."""
    fixed = {"lr": 2e-4, "mu": 0.01, "client_lr_factors": {}}
    same = [r.model_copy(update={"decision": r.decision and r.decision.model_copy(update=fixed)}) for r in history]
    figure = federated_metrics_figure(same)
    assert panel(figure, "Learning rate") is panel(figure, "Proximal term") is None
    assert "Learning rate 0.0002 in every round. Proximal term 0.01 in every round." in figure.get_supxlabel()
    assert figure.get_figheight() < federated_metrics_figure(history).get_figheight()
    boosted = same[2].decision and same[2].decision.model_copy(update={"client_lr_factors": {"place": 1.15}})
    figure = federated_metrics_figure([*same[:2], same[2].model_copy(update={"decision": boosted}), same[3]])
    assert drawn(panel(figure, "Learning rate"))["place only"] == ([2.0], [pytest.approx(2e-4 * 1.15)])


def test_action_error_by_round_with_its_interval(history: list[RoundRecord]) -> None:
    axes = action_error_by_round_figure(history, "degrees").axes[0]
    np.testing.assert_allclose(drawn(axes)["mean over sets"][1], [21.4, 14.2, np.nan, 9.15])
    np.testing.assert_allclose(drawn(axes)["lab/so101-unseen"][1], [19.4, 12.2, np.nan, 7.15])
    (band,) = [c for c in axes.collections if isinstance(c, PolyCollection)]
    at_start = [y for path in band.get_paths() for x, y in path.vertices if x == 0]
    # episodes at -0.2, -0.1, 0, 0.1, 0.2 degrees in both sets: SE 0.0707 each, 8 degrees of freedom together
    half_width = t(8).ppf(0.975) * 0.1 * 0.5**0.5 / 2**0.5
    assert (min(at_start), max(at_start)) == pytest.approx((21.4 - half_width, 21.4 + half_width), abs=1e-4)


def test_schedule_shows_lr_mu_and_the_client_with_a_boost(history: list[RoundRecord]) -> None:
    lr, mu = (federated_metrics_figure(history).axes[at] for at in (2, 5))
    np.testing.assert_allclose(drawn(lr)["all clients"][1], [np.nan, 1e-4, 8e-5, 5e-5])
    assert drawn(lr)["place only"] == ([2.0], [pytest.approx(8e-5 * 1.15)])
    np.testing.assert_allclose(drawn(mu)["all clients"][1], [np.nan, 0.01, 0.01, 0.0105])


def with_clients(record: RoundRecord, count: int) -> RoundRecord:
    """The record with the updates of so many clients, whose losses are 0, 1, 2, ..."""
    update = record.updates[0]
    many = tuple(
        update.model_copy(
            update={"client": f"c{i:03d}", "metrics": update.metrics.model_copy(update={"policy_loss": float(i)})}
        )
        for i in range(count)
    )
    return record.model_copy(update={"updates": many, "contributions": ()})


def test_many_clients_are_gray_and_their_mean_is_drawn(history: list[RoundRecord]) -> None:
    count = MAX_NAMED_CLIENTS + 1
    axes = federated_metrics_figure([with_clients(history[1], count)]).axes[0]
    assert drawn(axes) == {"mean of the clients": ([1.0], [5.0])}
    each, points = axes.collections
    assert each.get_label() == f"each of {count} clients"
    assert len(each.get_segments()) == len(points.get_offsets()) == count


def test_of_more_clients_the_range_of_most_is_drawn(history: list[RoundRecord]) -> None:
    axes = federated_metrics_figure([with_clients(history[1], MAX_DRAWN_CLIENTS + 1)]).axes[0]
    assert drawn(axes) == {"mean of the clients": ([1.0], [50.0])}
    between, lines = axes.collections
    assert between.get_label() == f"middle 90 % of {MAX_DRAWN_CLIENTS + 1} clients"
    assert [segment.tolist() for segment in lines.get_segments()] == [[[1.0, 5.0], [1.0, 95.0]]]


def test_the_footnote_has_the_settings_of_the_evaluations(history: list[RoundRecord]) -> None:
    text = evaluation_settings_note(history)
    assert "normalization pooled" in text
    assert "seed 42" in text
    per_client = [
        r.model_copy(
            update={"evaluation": r.evaluation and r.evaluation.model_copy(update={"normalization": "client"})}
        )
        for r in history
    ]
    assert "not comparable between clients" in evaluation_settings_note(per_client)
    assert "different settings are not comparable" in evaluation_settings_note([history[0], per_client[1]])


def test_themes_differ_and_an_empty_history_is_drawn(history: list[RoundRecord]) -> None:
    assert figure_png(policy_loss_figure(history, DARK_THEME), 40) != figure_png(policy_loss_figure(history), 40)
    for figure in (policy_loss_figure([]), action_error_by_round_figure([], "degrees"), federated_metrics_figure([])):
        assert all("nothing measured" in [t.get_text() for t in axes.texts] for axes in figure.axes)
        assert figure_png(figure, 40).startswith(b"\x89PNG")


def test_labels_are_escaped_and_shortened() -> None:
    assert shorten_label("$\\frac$") == r"\$\frac\$"
    assert not shorten_label("_hidden").startswith("_")
    assert shorten_label("x" * 50, 10) == "x" * 9 + "…"


def test_the_files_are_the_charts_and_no_temporary_file_stays(
    session: Session, history: list[RoundRecord], charts: SessionPageCharts, tmp_path: Path
) -> None:
    write_round_charts(history, session.contract.units, tmp_path / "deep")
    files = {path.name: path.read_bytes() for path in (tmp_path / "deep").iterdir()}
    assert files == dict(zip(CHART_FILES, (chart.light_png for chart in charts.by_round), strict=True))
    charts.write_files(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in CHART_FILES} == files


def test_a_folder_that_cannot_be_created_is_named(charts: SessionPageCharts, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ReportError, match="cannot be written"):
        charts.write_files(tmp_path / "file")
