"""The release rule: each condition alone prevents a release."""

import re
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from zk0.records import Checkpoint, EpisodeScore, Evaluation, RoundRecord, SetScore
from zk0.rules.release import decide_release
from zk0.settings.publish_settings import PublishSettings

REQUESTED = PublishSettings(repo_id="lab/arm")
BASE_LOSSES = (1.0, 1.7, 0.4, 2.2, 1.1)


def evaluated(number: int, losses: Sequence[float], seed: int = 1) -> RoundRecord:
    episodes = tuple(
        EpisodeScore(episode=i, frames=5, actions=50, policy_loss=loss, action_error_degrees=1.0)
        for i, loss in enumerate(losses)
    )
    score = SetScore(
        dataset="x/unseen", episodes=episodes, frames=25, policy_loss=float(np.mean(losses)), policy_loss_se=None,
        action_error_degrees=1.0, joint_error_degrees=(), horizon_error_degrees=(),
    )  # fmt: skip
    found = Evaluation(
        round=number, policy_loss=score.policy_loss, policy_loss_se=None, action_error_degrees=1.0, sets=(score,),
        normalization="pooled", seed=seed, times=8, seconds=1.0,
    )  # fmt: skip
    return RoundRecord(round=number, checkpoint=weights(number), evaluation=found, seconds=1.0, finished_at="now")


def weights(number: int) -> Checkpoint:
    return Checkpoint(round=number, path="w", digest="d" * 64, bytes=1)


def decreased(by: Sequence[float]) -> list[float]:
    return [h - b for h, b in zip(BASE_LOSSES, by, strict=True)]


BETTER = decreased((0.10, 0.12, 0.09, 0.11, 0.10))


def test_a_significantly_better_model_is_released_after_enough_rounds() -> None:
    found = decide_release(REQUESTED, [evaluated(0, BASE_LOSSES), evaluated(20, BETTER)], 20)
    assert (found.outcome, found.repo_id, found.private, found.round) == ("allowed", "lab/arm", True, 20)
    expected = stats.ttest_rel(BASE_LOSSES, BETTER).confidence_interval(0.95)
    assert found.improvement is not None
    assert found.improvement.interval == pytest.approx((expected.low, expected.high))
    ends = f"{expected.low:.3g} to {expected.high:.3g}"
    assert found.reason == (
        f"20 rounds ran, and the loss on unseen data fell by 0.104 since round 0 (95 % interval {ends})"
    )


def test_no_release_after_19_rounds() -> None:
    found = decide_release(REQUESTED, [evaluated(0, BASE_LOSSES), evaluated(19, BETTER)], 19)
    assert (found.outcome, found.reason) == ("refused", "19 rounds ran, expected at least 20")
    fewer = PublishSettings(repo_id="lab/arm", min_rounds=19)
    assert decide_release(fewer, [evaluated(0, BASE_LOSSES), evaluated(19, BETTER)], 19).outcome == "allowed"


def test_no_release_without_a_repository() -> None:
    found = decide_release(PublishSettings(), [evaluated(0, BASE_LOSSES), evaluated(20, BETTER)], 20)
    assert (found.outcome, found.reason, found.repo_id) == ("refused", "publish.repo_id is not set", None)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (decreased((0.5, -0.4, 0.4, -0.3, 0.3)), "fell by 0.1 since round 0 .*: not significantly better"),
        (
            decreased((-0.1, -0.1, -0.11, -0.1, -0.1)),
            r"rose by 0.102 since round 0 \(95 % interval 0.0964 to 0.108\): not",
        ),
        (BASE_LOSSES, "fell by 0 since round 0 .*: not significantly better"),
    ],
)
def test_a_model_that_is_not_significantly_better_is_refused(losses: list[float], message: str) -> None:
    found = decide_release(REQUESTED, [evaluated(0, BASE_LOSSES), evaluated(20, losses)], 20)
    assert found.outcome == "refused"
    assert pytest.approx(np.mean(BASE_LOSSES) - np.mean(losses)) == found.improvement.value

    assert re.search(message, found.reason), found.reason


def test_models_that_cannot_be_compared_are_refused() -> None:
    not_evaluated = evaluated(20, BETTER).model_copy(update={"evaluation": None})
    for history, number, message in [
        ([evaluated(0, BASE_LOSSES), not_evaluated], 20, "round 20 was not evaluated on unseen data"),
        ([evaluated(20, BETTER)], 20, "round 0 was not evaluated on unseen data"),
        (
            [evaluated(0, BASE_LOSSES), evaluated(20, BETTER, seed=2)],
            20,
            "the evaluations of rounds 0 and 20 are not comparable",
        ),
        ([evaluated(0, [2.0]), evaluated(20, [1.0])], 20, "no interval.*expected two episodes or more"),
        ([evaluated(0, BASE_LOSSES)], 0, "0 rounds ran, expected at least 20; round 0 is the base policy itself"),
    ]:
        found = decide_release(REQUESTED, history, number)
        assert found.outcome == "refused"

        assert re.search(message, found.reason), found.reason


def test_all_reasons_are_given() -> None:
    found = decide_release(PublishSettings(), [evaluated(0, BASE_LOSSES), evaluated(3, BASE_LOSSES)], 3)
    assert found.reason.count("; ") == 2


def test_a_selected_earlier_round_is_released_with_the_reason_for_it() -> None:
    rows = [evaluated(0, BASE_LOSSES), evaluated(9, BETTER), evaluated(20, BASE_LOSSES)]
    assert decide_release(REQUESTED, rows, 9).reason == "9 rounds ran, expected at least 20"
    found = decide_release(REQUESTED, rows, 9, "selection is best: lowest loss")
    assert (found.outcome, found.round) == ("allowed", 9)
    assert found.reason.startswith("round 9 (selection is best: lowest loss): 20 rounds ran, and the loss")
