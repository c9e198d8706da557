"""The verdict against hand calculations, whichever way the loss went."""

import pytest
from scipy.stats import t

from zk0.records import Evaluation, Rollout, RoundRecord
from zk0.report.verdict import loss_change, verdict


def _judged(record: RoundRecord, loss: float, noise: float, **changes: object) -> RoundRecord:
    """The same round with its loss moved to `loss`, and its episodes by as much, give or take `noise`."""
    assert record.evaluation is not None
    moved, sets = loss - record.evaluation.policy_loss, []
    for one in record.evaluation.sets:
        shaken = [
            e.model_copy(update={"policy_loss": e.policy_loss + moved + noise * (-1) ** i})
            for i, e in enumerate(one.episodes)
        ]
        sets.append(one.model_copy(update={"episodes": tuple(shaken), "policy_loss": one.policy_loss + moved}))
    judged = record.evaluation.model_copy(update={"policy_loss": loss, "sets": tuple(sets), **changes})
    return record.model_copy(update={"evaluation": Evaluation.model_validate(judged.model_dump())})


def test_the_fall_and_its_interval_are_paired(history: list[RoundRecord]) -> None:
    change = loss_change(history)
    assert change is not None
    assert (change.first_round, change.last_round) == (0, 3)
    assert change.fall == pytest.approx(1.214 - 0.655)
    # Episodes differ by (0.030 - 0.021) of their offsets; two sets with 4 degrees of freedom each.
    one, two = 0.009 * 1.2, 0.009 * 1.5
    dof = 4 * (one**2 + two**2) ** 2 / (one**4 + two**4)
    half = t(dof).ppf(0.975) * (one**2 + two**2) ** 0.5 / 2
    assert change.interval == pytest.approx((0.559 - half, 0.559 + half))
    assert half < 1.96 * (0.030**2 + 0.021**2) ** 0.5 / 3


def test_a_clear_fall_is_said_with_numbers(history: list[RoundRecord], rollouts: list[Rollout]) -> None:
    found = verdict(history, rollouts)
    assert found.outcome == "good"
    assert found.headline == "The loss on unseen data fell by 46 %."
    assert found.sentences == (
        "Policy loss on unseen data: 1.214 in round 0, 0.655 in round 3; down by 0.559 "
        "(95 % interval 0.539 to 0.579, paired over episodes).",
        "In closed loop, 1 of 3 attempts succeeded (33 %; 95 % Wilson interval 6 % to 79 %), 0 of 3 in round 0.",
    )


def test_order_of_the_history_does_not_matter(history: list[RoundRecord]) -> None:
    assert verdict(history[::-1], ()) == verdict(history, ())


def test_a_clear_rise(history: list[RoundRecord]) -> None:
    found = verdict([*history[:3], _judged(history[3], 1.714, 0.0)], ())
    assert found.outcome == "bad"
    assert found.headline == "The loss on unseen data rose by 41 %."
    assert "up by 0.500 (95 % interval 0.480 to 0.520, paired over episodes)" in found.sentences[0]


def test_a_rise_within_the_noise_is_no_change(history: list[RoundRecord]) -> None:
    found = verdict([*history[:3], _judged(history[3], 1.224, 0.030)], ())
    assert (found.outcome, found.headline) == ("open", "No clear change of the loss on unseen data.")
    assert "up by 0.010 (95 % interval −0.015 to" in found.sentences[0]


def test_a_single_episode_makes_nothing_sure(history: list[RoundRecord]) -> None:
    lone = []
    for record in history:
        judged = record.evaluation
        if judged:
            sets = tuple(s.model_copy(update={"episodes": s.episodes[:1]}) for s in judged.sets)
            record = record.model_copy(update={"evaluation": judged.model_copy(update={"sets": sets})})
        lone.append(record)
    found = verdict(lone, ())
    assert found.outcome == "open"
    assert "how surely is not known" in found.headline
    assert "without an interval" in found.sentences[0]


def test_other_frames_are_not_compared(history: list[RoundRecord]) -> None:
    judged = history[3].evaluation
    assert judged is not None
    fewer = judged.model_copy(update={"sets": (judged.sets[0],)})
    found = verdict([*history[:3], history[3].model_copy(update={"evaluation": fewer})], ())
    assert "cannot be compared" in found.headline


@pytest.mark.parametrize("change", [{"seed": 7}, {"normalization": "client"}, {"times": 4}])
def test_losses_measured_in_different_ways_are_not_compared(
    history: list[RoundRecord], change: dict[str, object]
) -> None:
    found = verdict([*history[:3], _judged(history[3], 0.1, 0.001, **change)], ())
    assert found.outcome == "open"
    assert "cannot be compared" in found.headline
    assert "down" not in found.sentences[0]


def test_too_little_measured(history: list[RoundRecord]) -> None:
    assert verdict([], ()).sentences == ("No round was judged on unseen data.",)
    only = verdict(history[:1], ())
    assert only.outcome == "open"
    assert only.sentences == ("Only round 0 was judged: policy loss 1.214 on unseen data.",)
