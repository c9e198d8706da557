"""Hyperparameter search: validation of the space, results, pruning, and resuming after a crash."""

from collections.abc import Callable
from math import log10
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from zk0.errors import EvaluationError, SettingsError
from zk0.settings.loading import parse_session
from zk0.tuning.search import STARTUP_TRIALS, open_search
from zk0.tuning.trials import Dimension, TrialResult, best_trial, default_space, objective_loss

SPACE = {
    "training.lr": Dimension(low=1e-5, high=1e-1, log=True),
    "training.local_steps": Dimension(low=10, high=40),
    "scheduler.type": Dimension(choices=("cosine", "reduce_on_plateau")),
}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "expected either low and high, or choices"),
        ({"low": 1}, "expected either low and high, or choices"),
        ({"low": 1, "high": 2, "choices": [3]}, "expected either low and high, or choices"),
        ({"low": 2, "high": 1}, "low 2 is above high 1"),
        ({"low": 0, "high": 1, "log": True}, "log needs a range above 0"),
        ({"low": 0, "high": 1, "step": 2}, "Extra inputs"),
    ],
)
def test_invalid_dimensions_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Dimension.model_validate(values)


def test_the_default_space_is_around_the_settings_of_the_session() -> None:
    evaluation = {"evaluation": {"datasets": [{"dataset": "x/j"}]}}
    clients = {"clients": [{"name": n, "dataset": f"x/{n}"} for n in "ab"]}
    steps = default_space(parse_session(evaluation | clients | {"training": {"local_steps": 100, "lr": 3e-3}}, "here"))
    assert steps["training.lr"] == Dimension(low=3e-3 / 30, high=3e-3 * 30, log=True)
    assert (steps["training.local_steps"].low, steps["training.local_steps"].high) == (25, 400)
    epochs = default_space(parse_session(evaluation | clients, "here"))
    assert (epochs["training.local_epochs"].low, epochs["training.local_epochs"].high) == (1, 4)
    assert steps.keys() - epochs.keys() == {"training.local_steps"}


def run_trials(folder: Path, trials: int, loss: Callable[[dict[str, Any], int], float], rounds: int = 3) -> None:
    """Run trials one after the other."""
    with open_search(folder, SPACE, seed=1) as search:
        for _ in range(trials):
            trial = search.next_trial(100)
            assert trial is not None
            reported = (trial.report(number, loss(trial.settings, number)) for number in range(1, rounds + 1))
            search.finish(trial, "pruned" if any(reported) else "finished", seconds=1.0)


def quadratic_loss(settings: dict[str, Any], number: int) -> float:
    """Minimum at lr 1e-3 with the cosine scheduler."""
    return (log10(settings["training.lr"]) + 3) ** 2 + (settings["scheduler.type"] != "cosine") + 1 / number


def test_the_search_finds_the_minimum_and_prunes_bad_trials(tmp_path: Path) -> None:
    run_trials(tmp_path, 14, quadratic_loss)
    with open_search(tmp_path, SPACE, seed=1) as search:
        rows = search.finished_trials()
    best = best_trial(rows)
    assert [row.number for row in rows] == list(range(14))
    assert best is not None
    assert 1e-4 < best.settings["training.lr"] < 1e-2
    assert best.settings["scheduler.type"] == "cosine"
    assert best.loss == pytest.approx(quadratic_loss(best.settings, 3))
    assert all(isinstance(row.settings["training.local_steps"], int) for row in rows)
    assert {row.outcome for row in rows[:STARTUP_TRIALS]} == {"finished"}
    pruned = [row for row in rows if row.outcome == "pruned"]
    assert pruned
    assert all(row.rounds < 3 and row.loss is not None and row.loss > best.loss for row in pruned)


def test_an_interrupted_trial_is_resumed(tmp_path: Path) -> None:
    run_trials(tmp_path, 2, quadratic_loss)
    with open_search(tmp_path, SPACE, seed=1) as search:
        trial = search.next_trial(100)
        assert trial is not None
        trial.report(1, 5.0)
    with open_search(tmp_path, SPACE, seed=1) as search:
        again = search.next_trial(3)
        assert again is not None
        assert (again.number, again.settings) == (2, trial.settings)
        again.report(1, 5.0)  # a resumed trial reports all rounds of its ledger
        again.report(2, 4.0)
        search.finish(again, "finished", seconds=2.0)
        *_, row = search.finished_trials()
    assert (row.loss, row.rounds, row.outcome, row.seconds) == (4.0, 2, "finished", 2.0)


def test_two_searches_in_one_folder_share_the_trials(tmp_path: Path) -> None:
    with open_search(tmp_path, SPACE, seed=1) as one:
        first = one.next_trial(3)
        with open_search(tmp_path, SPACE, seed=1) as two:
            second, third = two.next_trial(3), two.next_trial(3)
            assert first is not None
            assert second is not None
            assert third is not None
            assert [t.number for t in (first, second, third)] == [0, 1, 2]
            assert len({t.settings["training.lr"] for t in (first, second, third)}) == 3
            assert one.next_trial(3) is None  # the last ones run in another search
            two.finish(second, "failed", seconds=1.0)
        resumed = one.next_trial(3)  # the search that ran the third is closed
        assert resumed is not None
        assert (resumed.number, resumed.settings) == (2, third.settings)
        assert one.next_trial(3) is None


def test_the_same_search_proposes_the_same_settings(tmp_path: Path) -> None:
    proposed = []
    for name in ("one", "two"):
        run_trials(tmp_path / name, 2, quadratic_loss)
        run_trials(tmp_path / name, 2, quadratic_loss)
        with open_search(tmp_path / name, SPACE, seed=1) as search:
            proposed.append([row.settings for row in search.finished_trials()])
    assert proposed[0] == proposed[1]


def test_a_failed_trial_is_recorded_and_never_best(tmp_path: Path) -> None:
    with open_search(tmp_path, SPACE, seed=1) as search:
        trial = search.next_trial(100)
        assert trial is not None
        search.finish(trial, "failed", seconds=0.5, reason="not finite")
        (row,) = search.finished_trials()
    assert (row.outcome, row.loss, row.reason, row.rounds) == ("failed", None, "not finite", 0)
    assert best_trial([row]) is None


def test_another_space_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    run_trials(tmp_path, 1, quadratic_loss)
    other = {"training.lr": Dimension(low=1e-6, high=1.0, log=True)}
    with (
        pytest.raises(SettingsError, match=r"holds a search over .*; choose another folder"),
        open_search(tmp_path, other, seed=1),
    ):
        pass


def test_the_objective(evaluated_round: Any) -> None:
    record = evaluated_round
    assert objective_loss(record, "held_out") == pytest.approx((0.5 + 1.5) / 2)
    assert objective_loss(record, "unseen") == 3.0
    assert objective_loss(record.model_copy(update={"client_evaluation": None}), "held_out") is None
    empty = record.client_evaluation.model_copy(update={"scores": ()})
    with pytest.raises(EvaluationError, match="round 4: no client evaluated the model"):
        objective_loss(record.model_copy(update={"client_evaluation": empty}), "held_out")


@pytest.fixture
def evaluated_round() -> Any:
    from zk0.records import Checkpoint, ClientEvaluation, ClientScore, EpisodeScore, Evaluation, RoundRecord, SetScore

    def score(loss: float) -> SetScore:
        episode = EpisodeScore(episode=0, frames=1, actions=1, policy_loss=loss, action_error_degrees=1.0)
        return SetScore(
            dataset="x", episodes=(episode,), frames=1, policy_loss=loss, policy_loss_se=None,
            action_error_degrees=1.0, joint_error_degrees=(), horizon_error_degrees=(),
        )  # fmt: skip

    how = {"normalization": "pooled", "seed": 1, "times": 8, "seconds": 1.0}
    clients = ClientEvaluation(
        round=4, refusals=(), scores=tuple(ClientScore(client=c, score=score(x)) for c, x in (("a", 0.5), ("b", 1.5))),
        **how,
    )  # fmt: skip
    unseen = Evaluation(
        round=4, policy_loss=3.0, policy_loss_se=None, action_error_degrees=1.0, sets=(score(3.0),), **how
    )  # fmt: skip
    return RoundRecord(
        round=4, checkpoint=Checkpoint(round=4, path="", digest="", bytes=0), evaluation=unseen,
        client_evaluation=clients, seconds=1.0, finished_at="",
    )  # fmt: skip


def test_the_first_of_equally_good_trials_is_best() -> None:
    rows = [
        TrialResult(number=n, settings={}, outcome="finished", loss=loss, rounds=1, seconds=1.0)
        for n, loss in enumerate((2.0, 1.0, 1.0))
    ]
    best = best_trial(rows)
    assert best is not None
    assert best.number == 1
