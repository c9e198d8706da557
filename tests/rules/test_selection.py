"""The round of the session's policy, and the end of a session whose loss no longer falls."""

from typing import Any

import pytest

from zk0.records import Checkpoint, Evaluation, Rollout, RoundRecord
from zk0.rules.selection import final_round, select_round
from zk0.settings.loading import parse_session
from zk0.settings.session import Session

DEMO = (1.320, 0.499, 0.521, 0.548)


def session(**values: Any) -> Session:
    clients = [{"name": n, "dataset": f"sim:lift-{n}"} for n in ("red", "white")]
    evaluation = {"datasets": [{"dataset": "sim:lift-green"}]}
    return parse_session({"clients": clients, "evaluation": evaluation, "rounds": 30, **values}, "test")


def record(number: int, loss: float | None) -> RoundRecord:
    evaluation = None
    if loss is not None:
        evaluation = Evaluation(
            round=number, policy_loss=loss, policy_loss_se=None, action_error_degrees=1.0, sets=(),
            normalization="pooled", seed=1, times=8, seconds=1.0,
        )  # fmt: skip
    weights = Checkpoint(round=number, path="w", digest="d" * 64, bytes=1)
    return RoundRecord(round=number, checkpoint=weights, evaluation=evaluation, seconds=1.0, finished_at="now")


def history(*losses: float | None) -> list[RoundRecord]:
    return [record(number, loss) for number, loss in enumerate(losses)]


def attempts(number: int, successes: int, count: int = 4) -> list[Rollout]:
    return [
        Rollout(
            round=number, checkpoint="c", task="lift-red", conditions_digest="", seed=seed, success=seed < successes,
            steps=9, duration_seconds=0.9, fps=10, smoothness=None,
        )
        for seed in range(count)
    ]  # fmt: skip


def test_the_last_round_is_the_default_and_the_best_one_is_named() -> None:
    found = select_round(session(), history(*DEMO), ())
    assert (found.round, found.best) == (3, 1)
    assert found.reason == (
        "selection is last; the best one is round 1: lowest policy loss on unseen data (0.499; last round 0.548)"
    )


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        (DEMO, 1),
        ((0.1, 0.5, 0.4, 0.4), 2),  # the start policy is not chosen, and of equals the first is
        ((1.0, None, 0.4, None), 2),
        ((1.0, None, None), 2),  # none evaluated: the last
        ((1.0,), 0),
    ],
)
def test_the_best_round_has_the_lowest_loss(losses: tuple[float | None, ...], best: int) -> None:
    found = select_round(session(selection="best"), history(*losses), ())
    assert (found.round, found.best) == (best, best)


def test_attempts_decide_where_several_rounds_made_them() -> None:
    best = session(selection="best")
    rolled = [*attempts(0, 4), *attempts(1, 1), *attempts(2, 3), *attempts(3, 2)]
    found = select_round(best, history(*DEMO), rolled)
    assert (found.round, found.reason) == (2, "selection is best: most successful attempts (3; last round 2)")
    assert select_round(best, history(*DEMO), [*attempts(1, 2), *attempts(3, 2)]).round == 1  # equal: by loss
    assert select_round(best, history(*DEMO), attempts(3, 4)).round == 1  # one round only: by loss
    assert select_round(best, history(*DEMO), [*attempts(2, 4, count=9), *attempts(3, 2)]).round == 1


@pytest.mark.parametrize(
    ("patience", "losses", "last"),
    [
        (0, DEMO, 30),
        (2, DEMO[:3], 30),
        (2, DEMO, 3),
        (1, DEMO, 2),
        (2, (1.0, 1.1, None, 0.9, None, 0.95, None), 30),
        (2, (1.0, 1.1, None, 1.2), 3),
        (1, (1.0, 1.0), 1),
        (3, (), 30),
    ],
)
def test_a_session_ends_after_patience_rounds_without_a_lower_loss(
    patience: int, losses: tuple[float | None, ...], last: int
) -> None:
    assert final_round(session(patience=patience), history(*losses)) == last
