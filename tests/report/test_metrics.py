"""Metric files against the ledger; missing values are null."""

import json
from pathlib import Path
from statistics import fmean, pstdev

import pytest
from scipy.stats import t

from zk0.records import Rollout, RoundRecord
from zk0.report.metric_files import write_metric_files
from zk0.report.metrics import federated_metrics, policy_loss_history, server_eval


def test_aggregated_numbers_are_of_that_round(history: list[RoundRecord]) -> None:
    found = server_eval(history[2]).aggregated_client_metrics
    losses = [0.62, 0.55, 0.71, 0.52]
    assert found.num_clients == 4
    assert found.avg_client_loss == pytest.approx(fmean(losses))
    assert found.std_client_loss == pytest.approx(pstdev(losses))
    assert found.avg_client_proximal_loss == pytest.approx((0.002 + 0.004 + 0.006 + 0.008) / 4)
    assert found.avg_client_grad_norm == pytest.approx(1.1)
    assert found.param_update_norm == pytest.approx(0.35)


def test_an_unused_update_is_listed_but_not_averaged(history: list[RoundRecord]) -> None:
    unused = history[2].model_copy(update={"contributions": history[2].contributions[:2]})
    found = server_eval(unused)
    assert found.aggregated_client_metrics.num_clients == 2
    assert found.aggregated_client_metrics.avg_client_loss == pytest.approx((0.62 + 0.55) / 2)
    assert [c.weight is None for c in found.individual_client_metrics] == [False, False, True, True]


def test_clients_have_name_dataset_and_losses(history: list[RoundRecord]) -> None:
    found = {c.client_id: c for c in server_eval(history[3]).individual_client_metrics}
    assert set(found) == {"cloth", "lift", "stack"}
    assert found["lift"].dataset_name == "lab/so101-lift"
    assert found["lift"].policy_loss == 0.44
    assert found["lift"].fedprox_loss == 0.004
    assert found["lift"].weight == pytest.approx(3000 / 8200)
    assert server_eval(history[3]).refusals[0].reason == "NaN in model.action_out_proj.weight"


def test_round_0_has_no_clients_and_no_zeros(history: list[RoundRecord]) -> None:
    found = server_eval(history[0]).aggregated_client_metrics
    assert found.num_clients == 0
    rest = found.model_dump(exclude={"num_clients"})
    assert set(rest.values()) == {None}


def test_history_is_ordered_and_has_rounds_without_evaluation(history: list[RoundRecord]) -> None:
    points = policy_loss_history(history[::-1])
    assert [p.round for p in points] == [0, 1, 2, 3]
    assert [p.policy_loss for p in points] == [1.214, 0.902, None, 0.655]
    se = 0.021 * (1.2**2 + 1.5**2) ** 0.5 / 2
    dof = 4 * (1.2**2 + 1.5**2) ** 2 / (1.2**4 + 1.5**4)  # Welch and Satterthwaite, two sets of five episodes
    assert points[3].policy_loss_se == pytest.approx(se)
    assert (points[3].lower, points[3].upper) == pytest.approx(t.interval(0.95, dof, loc=0.655, scale=se))
    assert points[3].sets["sim:place-held-out"] == pytest.approx(0.755)
    assert points[2].sets == {}
    start, last = points[3].improvement_since_start, points[3].improvement_since_last
    assert start is not None
    assert last is not None
    assert (start.since_round, last.since_round) == (0, 1)
    assert (start.value, last.value) == pytest.approx((1.214 - 0.655, 0.902 - 0.655))
    assert start.lower is not None
    assert start.upper is not None
    assert start.lower < start.value < start.upper
    assert [p.improvement_since_start is None for p in points] == [True, False, True, False]


def test_every_round_has_its_decision(history: list[RoundRecord]) -> None:
    rounds = federated_metrics(history[::-1])
    assert [r.lr for r in rounds] == [None, 1e-4, 8e-5, 5e-5]
    assert [r.mu for r in rounds] == [None, 0.01, 0.01, 0.0105]
    assert rounds[3].reason == "stalled: x 0.95; spread of client losses above 1.2"


def test_success_rates_stand_beside_the_losses_of_their_round(
    history: list[RoundRecord], rollouts: list[Rollout], tmp_path: Path
) -> None:
    write_metric_files(tmp_path, history, rollouts)
    rounds = json.loads((tmp_path / "federated_metrics.json").read_text())
    for entry in rounds:
        attempts = [one.success for one in rollouts if one.round == entry["round"]]
        found = entry["success"]
        assert (found is None) == (not attempts)
        if found:
            assert (found["successes"], found["attempts"]) == (sum(attempts), len(attempts))
            assert found["lower"] < found["rate"] < found["upper"] or found["rate"] in (0, 1)
        own = json.loads((tmp_path / "server" / f"round_{entry['round']}_server_eval.json").read_text())
        assert own["success"] == found
    assert [entry["success"] is not None for entry in rounds] == [True, False, False, True]


def test_the_servers_loss_has_the_name_that_wandb_has(history: list[RoundRecord]) -> None:
    evaluation = history[3].evaluation
    assert evaluation is not None
    found = server_eval(history[3])
    assert found.server_policy_loss == found.policy_loss == 0.655
    assert found.action_dim == len(evaluation.sets[0].joint_error_degrees) > 0
    assert [r.server_policy_loss for r in federated_metrics(history)] == [1.214, 0.902, None, 0.655]
    assert server_eval(history[2]).action_dim is None


def test_cross_task_loss_and_generalization_gap(history: list[RoundRecord]) -> None:
    """Means over four clients' held-out episodes and two unseen sets."""
    record = history[3]
    assert record.evaluation is not None
    assert record.client_evaluation is not None
    seen = [s.score.policy_loss for s in record.client_evaluation.scores]
    unseen = [s.policy_loss for s in record.evaluation.sets]
    assert len(seen) + len(unseen) == 5, "one client did not respond"
    for found in (server_eval(record), federated_metrics(history)[3]):
        assert found.cross_task_loss == pytest.approx(sum([*seen, *unseen]) / 5)
        assert found.generalization_gap == pytest.approx((0.555 + 0.755) / 2 - fmean(seen))
    assert (server_eval(history[2]).cross_task_loss, server_eval(history[2]).generalization_gap) == (None, None)
    assert server_eval(history[1]).generalization_gap is None, "no client evaluated"
    assert server_eval(history[1]).cross_task_loss == pytest.approx(0.902)


def test_files_are_json_with_null_for_missing_values(history: list[RoundRecord], tmp_path: Path) -> None:
    write_metric_files(tmp_path, history)
    written = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert written == [
        "action_error_history.json",
        "federated_metrics.json",
        "policy_loss_history.json",
        *(f"server/round_{n}_server_eval.json" for n in range(4)),
    ]
    losses = json.loads((tmp_path / "policy_loss_history.json").read_text())
    assert [p["policy_loss"] for p in losses] == [1.214, 0.902, None, 0.655]
    errors = json.loads((tmp_path / "action_error_history.json").read_text())
    assert [p["action_error_degrees"] for p in errors] == [21.4, 14.2, None, 9.15]
    assert errors[3]["improvement_since_start"]["value"] == pytest.approx(21.4 - 9.15)
    assert errors[3]["sets"] == {"lab/so101-unseen": pytest.approx(7.15), "sim:place-held-out": pytest.approx(11.15)}
    assert errors[0]["held_out"] == {"cloth": 10.0, "lift": 10.0, "place": 10.0, "stack": 10.0}
    second = json.loads((tmp_path / "server" / "round_2_server_eval.json").read_text())
    assert second["policy_loss"] is None
    assert [c["client_id"] for c in second["individual_client_metrics"]] == ["cloth", "lift", "place", "stack"]
