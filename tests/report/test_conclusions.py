"""Conclusions against hand calculations, for decreasing and increasing losses."""

import pytest
from scipy.stats import t

from zk0.records import Evaluation, Rollout, RoundRecord
from zk0.report.conclusions import loss_change, session_conclusions
from zk0.rules.selection import Selection


def _evaluated(record: RoundRecord, loss: float, noise: float, **changes: object) -> RoundRecord:
    """The same round with the loss changed to `loss`, and its episodes by the same amount ± `noise`."""
    assert record.evaluation is not None
    change, sets = loss - record.evaluation.policy_loss, []
    for one in record.evaluation.sets:
        episodes = [
            e.model_copy(update={"policy_loss": e.policy_loss + change + noise * (-1) ** i})
            for i, e in enumerate(one.episodes)
        ]
        sets.append(one.model_copy(update={"episodes": tuple(episodes), "policy_loss": one.policy_loss + change}))
    evaluation = record.evaluation.model_copy(update={"policy_loss": loss, "sets": tuple(sets), **changes})
    return record.model_copy(update={"evaluation": Evaluation.model_validate(evaluation.model_dump())})


def test_the_improvement_and_its_interval_are_paired(history: list[RoundRecord]) -> None:
    change = loss_change(history)
    assert change is not None
    assert (change.first_round, change.last_round) == (0, 3)
    assert change.improvement == pytest.approx(1.214 - 0.655)
    # Episodes differ by (0.030 - 0.021) of their offsets; two sets with 4 degrees of freedom each.
    one, two = 0.009 * 1.2, 0.009 * 1.5
    dof = 4 * (one**2 + two**2) ** 2 / (one**4 + two**4)
    half_width = t(dof).ppf(0.975) * (one**2 + two**2) ** 0.5 / 2
    assert change.interval == pytest.approx((0.559 - half_width, 0.559 + half_width))
    assert half_width < 1.96 * (0.030**2 + 0.021**2) ** 0.5 / 3


def test_a_significant_improvement(history: list[RoundRecord], rollouts: list[Rollout]) -> None:
    found = session_conclusions(history, rollouts)
    assert session_conclusions(history, ()).outcome == "improved"
    assert session_conclusions(history, ()).headline == "The loss on unseen data fell by 46 %."
    assert found.outcome == "inconclusive", "attempts decide, and three are too few"
    assert found.headline == (
        "The number of successful attempts did not change significantly: 1 of 3, before 0. "
        "The loss on unseen data fell by 46 %."
    )
    assert found.sentences == (
        "Policy loss on unseen data: 1.214 in round 0, 0.655 in round 3; down by 0.559 "
        "(95 % interval 0.539 to 0.579, paired over episodes).",
        "In closed loop, 1 of 3 attempts succeeded (33 %; 95 % Wilson interval 6 % to 79 %), 0 of 3 in round 0.",
    )


def test_order_of_the_history_does_not_matter(history: list[RoundRecord]) -> None:
    assert session_conclusions(history[::-1], ()) == session_conclusions(history, ())


def test_a_significant_increase(history: list[RoundRecord]) -> None:
    found = session_conclusions([*history[:3], _evaluated(history[3], 1.714, 0.0)], ())
    assert found.outcome == "worse"
    assert found.headline == "The loss on unseen data rose by 41 %."
    assert "up by 0.500 (95 % interval 0.480 to 0.520, paired over episodes)" in found.sentences[0]


def test_an_increase_within_the_noise_is_not_significant(history: list[RoundRecord]) -> None:
    found = session_conclusions([*history[:3], _evaluated(history[3], 1.224, 0.030)], ())
    assert (found.outcome, found.headline) == (
        "inconclusive",
        "The loss on unseen data rose by 1 %, not significantly.",
    )
    assert "up by 0.010 (95 % interval −0.015 to" in found.sentences[0]


def test_fewer_successes_than_before_training_open_the_report(
    history: list[RoundRecord], rollouts: list[Rollout]
) -> None:
    turned = [r.model_copy(update={"success": not r.success}) for r in rollouts]
    found = session_conclusions(history, turned)
    assert found.outcome == "worse"
    assert found.headline.startswith("Fewer attempts succeeded than before training: 2 of 3, before 3. The loss")


def test_more_successes_than_before_training_decide(history: list[RoundRecord], rollouts: list[Rollout]) -> None:
    """Six of six attempts against none: the interval is above zero, and a higher loss does not count."""
    pairs = [(r, s) for r in rollouts for s in (0, 100)]
    many = [r.model_copy(update={"seed": r.seed + s, "success": r.round == 3}) for r, s in pairs]
    worse = [*history[:3], _evaluated(history[3], 1.714, 0.0)]
    found = session_conclusions(worse, many)
    assert found.outcome == "improved"
    assert found.headline.startswith("More attempts succeeded than before training: 6 of 6, before 0. The loss")
    other = [*many[:-1], many[-1].model_copy(update={"seed": 1})]
    assert session_conclusions(worse, other).outcome == "worse", "the attempts differ, so the loss decides"


def test_the_selected_round_is_named_with_its_reason(history: list[RoundRecord]) -> None:
    selected = Selection(round=2, best=2, reason="selection is best: lowest loss")
    found = session_conclusions(history, (), selected)
    assert found.sentences[-1] == "The policy of this session is that of round 2 (selection is best: lowest loss)."
    assert found.headline == "The loss on unseen data fell by 46 %. The best round was 2 of 3."
    assert "best" not in session_conclusions(history[:2], (), selected).headline, "only one round was trained"


def test_a_single_episode_has_no_interval(history: list[RoundRecord]) -> None:
    single = []
    for record in history:
        evaluation = record.evaluation
        if evaluation:
            sets = tuple(s.model_copy(update={"episodes": s.episodes[:1]}) for s in evaluation.sets)
            record = record.model_copy(update={"evaluation": evaluation.model_copy(update={"sets": sets})})
        single.append(record)
    found = session_conclusions(single, ())
    assert found.outcome == "inconclusive"
    assert "its interval is not known" in found.headline
    assert "without an interval" in found.sentences[0]


def test_evaluations_of_other_frames_are_not_compared(history: list[RoundRecord]) -> None:
    evaluation = history[3].evaluation
    assert evaluation is not None
    fewer = evaluation.model_copy(update={"sets": (evaluation.sets[0],)})
    found = session_conclusions([*history[:3], history[3].model_copy(update={"evaluation": fewer})], ())
    assert "not comparable" in found.headline


@pytest.mark.parametrize("change", [{"seed": 7}, {"normalization": "client"}, {"times": 4}])
def test_evaluations_with_other_settings_are_not_compared(
    history: list[RoundRecord], change: dict[str, object]
) -> None:
    found = session_conclusions([*history[:3], _evaluated(history[3], 0.3, 0.001, **change)], ())
    assert found.outcome == "inconclusive"
    assert "not comparable" in found.headline
    assert "down" not in found.sentences[0]


def test_fewer_than_two_evaluations(history: list[RoundRecord]) -> None:
    assert session_conclusions([], ()).sentences == ("No round was evaluated on unseen data.",)
    only = session_conclusions(history[:1], ())
    assert only.outcome == "inconclusive"
    assert only.sentences == ("Only round 0 was evaluated: policy loss 1.214 on unseen data.",)
