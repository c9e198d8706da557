"""A search over settings: what may be asked, what it finds, what it stops early, and what it is after a crash."""

from collections.abc import Callable
from math import log10
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from zk0.errors import EvaluationError, SettingsError
from zk0.search import STARTUP_TRIALS, open_search
from zk0.session import parse_session
from zk0.trials import Dimension, TrialRow, best_of, loss_of, usual_space

SPACE = {
    "training.lr": Dimension(low=1e-5, high=1e-1, log=True),
    "training.local_steps": Dimension(low=10, high=40),
    "scheduler.type": Dimension(choices=("cosine", "reduce_on_plateau")),
}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "expected either low and high, or choices"),
        ({"low": 1}, "expected either low and high, or choices"),
        ({"low": 1, "high": 2, "choices": [3]}, "expected either low and high, or choices"),
        ({"low": 2, "high": 1}, "low 2 is above high 1"),
        ({"low": 0, "high": 1, "log": True}, "log needs a range above 0"),
        ({"low": 0, "high": 1, "step": 2}, "Extra inputs"),
    ],
)
def test_a_dimension_that_is_none(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Dimension.model_validate(values)


def test_the_usual_space_lies_around_the_session() -> None:
    judge = {"evaluation": {"datasets": [{"dataset": "x/j"}]}}
    clients = {"clients": [{"name": n, "dataset": f"x/{n}"} for n in "ab"]}
    steps = usual_space(parse_session(judge | clients | {"training": {"local_steps": 100, "lr": 3e-3}}, "here"))
    assert steps["training.lr"] == Dimension(low=3e-3 / 30, high=3e-3 * 30, log=True)
    assert (steps["training.local_steps"].low, steps["training.local_steps"].high) == (25, 400)
    epochs = usual_space(parse_session(judge | clients, "here"))
    assert (epochs["training.local_epochs"].low, epochs["training.local_epochs"].high) == (1, 4)
    assert steps.keys() - epochs.keys() == {"training.local_steps"}


def play(folder: Path, trials: int, loss: Callable[[dict[str, Any], int], float], rounds: int = 3) -> None:
    """Trials one after the other."""
    with open_search(folder, SPACE, seed=1) as search:
        for _ in range(trials):
            trial = search.next(100)
            assert trial is not None
            reported = (trial.report(number, loss(trial.settings, number)) for number in range(1, rounds + 1))
            search.end(trial, "pruned" if any(reported) else "finished", seconds=1.0)


def valley(settings: dict[str, Any], number: int) -> float:
    """Smallest at lr 1e-3 with the cosine."""
    return (log10(settings["training.lr"]) + 3) ** 2 + (settings["scheduler.type"] != "cosine") + 1 / number


def test_it_finds_the_valley_and_stops_what_is_bad(tmp_path: Path) -> None:
    play(tmp_path, 14, valley)
    with open_search(tmp_path, SPACE, seed=1) as search:
        rows = search.rows()
    best = best_of(rows)
    assert [row.number for row in rows] == list(range(14))
    assert best is not None
    assert 1e-4 < best.settings["training.lr"] < 1e-2
    assert best.settings["scheduler.type"] == "cosine"
    assert best.loss == pytest.approx(valley(best.settings, 3))
    assert all(isinstance(row.settings["training.local_steps"], int) for row in rows)
    assert {row.outcome for row in rows[:STARTUP_TRIALS]} == {"finished"}
    pruned = [row for row in rows if row.outcome == "pruned"]
    assert pruned
    assert all(row.rounds < 3 and row.loss is not None and row.loss > best.loss for row in pruned)


def test_a_trial_that_a_crash_interrupted_goes_on(tmp_path: Path) -> None:
    play(tmp_path, 2, valley)
    with open_search(tmp_path, SPACE, seed=1) as search:
        trial = search.next(100)
        assert trial is not None
        trial.report(1, 5.0)
    with open_search(tmp_path, SPACE, seed=1) as search:
        again = search.next(3)
        assert again is not None
        assert (again.number, again.settings) == (2, trial.settings)
        again.report(1, 5.0)  # its ledger is read from the start
        again.report(2, 4.0)
        search.end(again, "finished", seconds=2.0)
        *_, row = search.rows()
    assert (row.loss, row.rounds, row.outcome, row.seconds) == (4.0, 2, "finished", 2.0)


def test_two_searches_in_one_folder_share_the_trials(tmp_path: Path) -> None:
    with open_search(tmp_path, SPACE, seed=1) as one:
        first = one.next(3)
        with open_search(tmp_path, SPACE, seed=1) as two:
            second, third = two.next(3), two.next(3)
            assert first is not None
            assert second is not None
            assert third is not None
            assert [t.number for t in (first, second, third)] == [0, 1, 2]
            assert len({t.settings["training.lr"] for t in (first, second, third)}) == 3
            assert one.next(3) is None  # others work on the last ones
            two.end(second, "failed", seconds=1.0)
        taken_up = one.next(3)  # whoever worked on the third has gone
        assert taken_up is not None
        assert (taken_up.number, taken_up.settings) == (2, third.settings)
        assert one.next(3) is None


def test_the_same_search_proposes_the_same(tmp_path: Path) -> None:
    proposed = []
    for name in ("one", "two"):
        play(tmp_path / name, 2, valley)
        play(tmp_path / name, 2, valley)
        with open_search(tmp_path / name, SPACE, seed=1) as search:
            proposed.append([row.settings for row in search.rows()])
    assert proposed[0] == proposed[1]


def test_a_failed_trial_is_told_and_counts_for_nothing(tmp_path: Path) -> None:
    with open_search(tmp_path, SPACE, seed=1) as search:
        trial = search.next(100)
        assert trial is not None
        search.end(trial, "failed", seconds=0.5, reason="not finite")
        (row,) = search.rows()
    assert (row.outcome, row.loss, row.reason, row.rounds) == ("failed", None, "not finite", 0)
    assert best_of([row]) is None


def test_another_space_in_the_same_folder(tmp_path: Path) -> None:
    play(tmp_path, 1, valley)
    other = {"training.lr": Dimension(low=1e-6, high=1.0, log=True)}
    with (
        pytest.raises(SettingsError, match=r"this search looks for .*; choose another folder"),
        open_search(tmp_path, other, seed=1),
    ):
        pass


def test_what_is_made_small(history_of_clients: Any) -> None:
    record = history_of_clients
    assert loss_of(record, "held_out") == pytest.approx((0.5 + 1.5) / 2)
    assert loss_of(record, "unseen") == 3.0
    assert loss_of(record.model_copy(update={"client_evaluation": None}), "held_out") is None
    nobody = record.client_evaluation.model_copy(update={"scores": ()})
    with pytest.raises(EvaluationError, match="round 4: no client could judge"):
        loss_of(record.model_copy(update={"client_evaluation": nobody}), "held_out")


@pytest.fixture
def history_of_clients() -> Any:
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


def test_the_best_of_equals_is_the_first() -> None:
    rows = [
        TrialRow(number=n, settings={}, outcome="finished", loss=loss, rounds=1, seconds=1.0)
        for n, loss in enumerate((2.0, 1.0, 1.0))
    ]
    best = best_of(rows)
    assert best is not None
    assert best.number == 1
