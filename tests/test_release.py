"""The rule of a release: each condition alone keeps a model in the house."""

import re
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from zk0.records import Checkpoint, EpisodeScore, Evaluation, RoundRecord, SetScore
from zk0.release import decide_release
from zk0.session import PublishSettings

ASKED = PublishSettings(repo_id="lab/arm")
HARD = (1.0, 1.7, 0.4, 2.2, 1.1)


def judged(number: int, losses: Sequence[float], seed: int = 1) -> RoundRecord:
    episodes = tuple(
        EpisodeScore(episode=i, frames=5, actions=50, policy_loss=loss, action_error_degrees=1.0)
        for i, loss in enumerate(losses)
    )
    score = SetScore(
        dataset="x/judge", episodes=episodes, frames=25, policy_loss=float(np.mean(losses)), policy_loss_se=None,
        action_error_degrees=1.0, joint_error_degrees=(), horizon_error_degrees=(),
    )  # fmt: skip
    found = Evaluation(
        round=number, policy_loss=score.policy_loss, policy_loss_se=None, action_error_degrees=1.0, sets=(score,),
        normalization="pooled", seed=seed, times=8, seconds=1.0,
    )  # fmt: skip
    return RoundRecord(round=number, checkpoint=weights(number), evaluation=found, seconds=1.0, finished_at="now")


def weights(number: int) -> Checkpoint:
    return Checkpoint(round=number, path="w", digest="d" * 64, bytes=1)


def lower(by: Sequence[float]) -> list[float]:
    return [h - b for h, b in zip(HARD, by, strict=True)]


SURE = lower((0.10, 0.12, 0.09, 0.11, 0.10))


def test_a_model_that_is_surely_better_after_enough_rounds_may_go() -> None:
    found = decide_release(ASKED, [judged(0, HARD), judged(20, SURE)], 20)
    assert (found.outcome, found.repo_id, found.private, found.round) == ("allowed", "lab/arm", True, 20)
    wanted = stats.ttest_rel(HARD, SURE).confidence_interval(0.95)
    assert found.fall is not None
    assert found.fall.interval == pytest.approx((wanted.low, wanted.high))
    ends = f"{wanted.low:.3g} to {wanted.high:.3g}"
    assert found.reason == (
        f"20 rounds ran, and the loss on unseen data fell by 0.104 since round 0 (95 % interval {ends})"
    )


def test_nothing_goes_after_19_rounds() -> None:
    found = decide_release(ASKED, [judged(0, HARD), judged(19, SURE)], 19)
    assert (found.outcome, found.reason) == ("refused", "19 rounds ran, expected at least 20")
    fewer = PublishSettings(repo_id="lab/arm", min_rounds=19)
    assert decide_release(fewer, [judged(0, HARD), judged(19, SURE)], 19).outcome == "allowed"


def test_nothing_goes_that_nobody_asked_for() -> None:
    found = decide_release(PublishSettings(), [judged(0, HARD), judged(20, SURE)], 20)
    assert (found.outcome, found.reason, found.repo_id) == ("refused", "publish.repo_id is not set", None)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (lower((0.5, -0.4, 0.6, -0.3, 0.1)), "fell by 0.1 since round 0 .*: not surely better"),
        (lower((-0.1, -0.1, -0.11, -0.1, -0.1)), r"rose by 0.102 since round 0 \(95 % interval 0.0964 to 0.108\): not"),
        (HARD, "fell by 0 since round 0 .*: not surely better"),
    ],
)
def test_a_model_that_is_not_surely_better_stays(losses: list[float], said: str) -> None:
    found = decide_release(ASKED, [judged(0, HARD), judged(20, losses)], 20)
    assert found.outcome == "refused"
    assert pytest.approx(np.mean(HARD) - np.mean(losses)) == found.fall.value

    assert re.search(said, found.reason), found.reason


def test_what_cannot_be_compared_stays() -> None:
    unjudged = judged(20, SURE).model_copy(update={"evaluation": None})
    for history, number, said in [
        ([judged(0, HARD), unjudged], 20, "round 20 was not judged on unseen data"),
        ([judged(20, SURE)], 20, "round 0 was not judged on unseen data"),
        ([judged(0, HARD), judged(20, SURE, seed=2)], 20, "rounds 0 and 20 were judged in different ways"),
        ([judged(0, [2.0]), judged(20, [1.0])], 20, "no interval is known.*expected two episodes or more"),
        ([judged(0, HARD)], 0, "0 rounds ran, expected at least 20; round 0 is the base itself"),
    ]:
        found = decide_release(ASKED, history, number)
        assert found.outcome == "refused"

        assert re.search(said, found.reason), found.reason


def test_every_reason_is_told() -> None:
    found = decide_release(PublishSettings(), [judged(0, HARD), judged(3, HARD)], 3)
    assert found.reason.count("; ") == 2
