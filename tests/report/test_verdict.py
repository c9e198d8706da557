"""The verdict against hand calculations, whichever way the loss went."""

import pytest

from zk0.records import Evaluation, Rollout, RoundRecord
from zk0.report.verdict import loss_change, verdict, wilson


def _judged(record: RoundRecord, loss: float, se: float | None, **changes: object) -> RoundRecord:
    assert record.evaluation is not None
    judged = record.evaluation.model_copy(update={"policy_loss": loss, "policy_loss_se": se, **changes})
    return record.model_copy(update={"evaluation": Evaluation.model_validate(judged.model_dump())})


def test_the_fall_and_its_interval(history: list[RoundRecord]) -> None:
    change = loss_change(history)
    assert change is not None
    assert (change.first_round, change.last_round) == (0, 3)
    assert change.fall == pytest.approx(1.214 - 0.655)
    half = 1.959963984540054 * (0.030**2 + 0.021**2) ** 0.5
    assert change.interval == pytest.approx((0.559 - half, 0.559 + half))


def test_a_clear_fall_is_said_with_numbers(history: list[RoundRecord], rollouts: list[Rollout]) -> None:
    found = verdict(history, rollouts)
    assert found.outcome == "good"
    assert found.headline == "The loss on unseen data fell by 46 %."
    assert found.sentences == (
        "Policy loss on unseen data: 1.214 in round 0, 0.655 in round 3; down by 0.559 (95 % interval 0.487 to 0.631).",
        "In closed loop, 1 of 3 attempts succeeded (33 %; 95 % Wilson interval 6 % to 79 %).",
    )


def test_order_of_the_history_does_not_matter(history: list[RoundRecord]) -> None:
    assert verdict(history[::-1], ()) == verdict(history, ())


def test_a_clear_rise(history: list[RoundRecord]) -> None:
    found = verdict([*history[:3], _judged(history[3], 1.714, 0.030)], ())
    assert found.outcome == "bad"
    assert found.headline == "The loss on unseen data rose by 41 %."
    # 0.5 -+ 1.96 * 0.030 * sqrt(2)
    assert "up by 0.500 (95 % interval 0.417 to 0.583)" in found.sentences[0]


def test_a_rise_within_the_noise_is_no_change(history: list[RoundRecord]) -> None:
    found = verdict([*history[:3], _judged(history[3], 1.224, 0.030)], ())
    assert (found.outcome, found.headline) == ("open", "No clear change of the loss on unseen data.")
    assert "up by 0.010 (95 % interval −0.073 to 0.093)" in found.sentences[0]


def test_without_a_standard_error_nothing_is_sure(history: list[RoundRecord]) -> None:
    found = verdict([*history[:3], _judged(history[3], 0.5, None)], ())
    assert found.outcome == "open"
    assert "how surely is not known" in found.headline
    assert "interval" not in found.sentences[0].replace("without an interval", "")


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


@pytest.mark.parametrize("attempts", [1, 3, 20])
def test_wilson_solves_its_equation(attempts: int) -> None:
    """Both ends p satisfy (share - p)^2 = z^2 p (1 - p) / n."""
    for successes in range(attempts + 1):
        share = successes / attempts
        for end in wilson(successes, attempts):
            assert (share - end) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / attempts, abs=1e-12)


@pytest.mark.parametrize(("successes", "attempts"), [(0, 0), (2, 1), (-1, 3)])
def test_wilson_refuses_what_is_no_rate(successes: int, attempts: int) -> None:
    with pytest.raises(ValueError, match="no rate"):
        wilson(successes, attempts)
