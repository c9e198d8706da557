"""Intervals against hand calculations and scipy."""

import numpy as np
import pytest
from scipy import stats

from zk0.interval import (
    Estimate,
    mean_of,
    measured_alike,
    paired_fall,
    rate_difference,
    set_fall,
    weighted_mean,
    wilson,
)
from zk0.records import EpisodeScore, Evaluation, SetScore


def scored(losses: list[float], actions: list[int], name: str = "a") -> SetScore:
    episodes = tuple(
        EpisodeScore(episode=i, frames=n, actions=n, policy_loss=x, action_error_degrees=10 * x)
        for i, (x, n) in enumerate(zip(losses, actions, strict=True))
    )
    return SetScore(
        dataset=name, episodes=episodes, frames=sum(actions), policy_loss=float(np.average(losses, weights=actions)),
        policy_loss_se=None, action_error_degrees=1.0, joint_error_degrees=(), horizon_error_degrees=(),
    )  # fmt: skip


def judged(*sets: SetScore, **changes: object) -> Evaluation:
    values = {"round": 0, "policy_loss": 1.0, "policy_loss_se": None, "action_error_degrees": 1.0, "seconds": 1.0}
    return Evaluation(**values | {"sets": sets, "normalization": "pooled", "seed": 1, "times": 8} | changes)


def test_equal_weights_give_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(2, 1, 12)  # the same episodes are hard for both models
    before, after = hard + rng.normal(0, 0.1, 12), hard - 0.2 + rng.normal(0, 0.1, 12)
    found = set_fall(scored(before.tolist(), [7] * 12), scored(after.tolist(), [7] * 12))
    wanted = stats.ttest_rel(before, after)
    ends = wanted.confidence_interval(0.95)
    assert found.interval == pytest.approx((ends.low, ends.high))
    assert ends.low > 0
    unpaired = stats.ttest_ind(before, after).confidence_interval(0.95)
    assert unpaired.low < 0  # pairing is what makes it sure


def test_the_mean_is_weighted_by_what_counts_in_an_episode() -> None:
    found = weighted_mean([1.0, 2.0, 6.0], [10, 20, 10])
    assert found.value == pytest.approx(2.75)
    parts = [0.25 * 1.75, 0.5 * 0.75, 0.25 * 3.25]
    assert found.se == pytest.approx((1.5 * sum(p * p for p in parts)) ** 0.5)
    assert weighted_mean([3.0], [9]) == Estimate(value=3.0, se=None, dof=None)


def test_the_error_of_a_ratio_covers_what_it_says() -> None:
    """Of 400 samples of episodes of unequal length, about 95 % of the intervals hold the true ratio."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(400):
        weights = rng.integers(20, 60, 20)
        ends = weighted_mean((1.5 + rng.normal(0, 1, 20)).tolist(), weights.tolist()).interval
        assert ends is not None
        hits += ends[0] <= 1.5 <= ends[1]
    assert 365 <= hits <= 395


def test_sets_are_averaged_after_welch_and_satterthwaite() -> None:
    rng = np.random.default_rng(2)
    one, two = rng.normal(0, 1, 6), rng.normal(0, 3, 9)
    found = mean_of([weighted_mean(v.tolist(), [1] * len(v)) for v in (one, two)])
    welch = stats.ttest_ind(one, -two, equal_var=False).confidence_interval(0.95)  # of the sum of the two means
    assert found.interval == pytest.approx((welch.low / 2, welch.high / 2))
    assert mean_of([found, Estimate(value=0.0, se=None, dof=None)]).interval is None
    sure = Estimate(value=1.0, se=0.0, dof=3.0)
    assert mean_of([sure, sure]).interval == (1.0, 1.0)


def test_a_fall_over_two_sets_and_both_metrics() -> None:
    before = judged(scored([2.0, 4.0], [5, 5]), scored([1.0, 1.0], [5, 5], "b"))
    after = judged(scored([1.0, 2.0], [5, 5]), scored([2.0, 1.0], [5, 5], "b"), round=4)
    assert paired_fall(before, after).value == pytest.approx((1.5 - 0.5) / 2)
    assert paired_fall(before, after, "action_error_degrees").value == pytest.approx(5.0)


@pytest.mark.parametrize("change", [{"seed": 2}, {"times": 4}, {"normalization": "client"}, {"sets": ()}])
def test_what_was_measured_differently_is_not_paired(change: dict[str, object]) -> None:
    one = judged(scored([1.0, 2.0], [5, 5]))
    other = one.model_copy(update=change)
    assert measured_alike(one, one.model_copy(update={"round": 9, "seconds": 7.0, "policy_loss": 0.0}))
    assert not measured_alike(one, other)
    with pytest.raises(ValueError, match="not measured alike"):
        paired_fall(one, other)


def test_other_frames_are_not_paired() -> None:
    with pytest.raises(ValueError, match="not the same frames"):
        set_fall(scored([1.0, 2.0], [5, 5]), scored([1.0, 2.0], [5, 6]))


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


def test_the_paired_difference_of_rates_covers_what_it_says() -> None:
    """All outcomes of 12 pairs, weighted by their probability: the interval holds the true difference often enough."""
    n, cells = 12, (0.3, 0.1, 0.35, 0.25)  # both, before only, after only, neither
    truth, covered, total = cells[2] - cells[1], 0.0, 0.0
    for both in range(n + 1):
        for before in range(n + 1 - both):
            for after in range(n + 1 - both - before):
                counts = (both, before, after, n - both - before - after)
                chance = stats.multinomial(n, cells).pmf(counts)
                pairs = [p for p, k in zip(((1, 1), (1, 0), (0, 1), (0, 0)), counts, strict=True) for _ in range(k)]
                value, (low, high) = rate_difference([bool(b) for b, _ in pairs], [bool(a) for _, a in pairs])
                assert low <= value <= high
                covered += chance * (low <= truth <= high)
                total += chance
    assert total == pytest.approx(1)
    assert 0.93 < covered < 0.99


def test_the_same_successes_are_surer_than_other_ones() -> None:
    half = [True] * 10 + [False] * 10
    alike = rate_difference(half, half)
    crossed = rate_difference(half, half[::-1])
    assert alike[0] == crossed[0] == 0
    assert alike[1][1] - alike[1][0] < (crossed[1][1] - crossed[1][0]) / 2
    with pytest.raises(ValueError, match="no rate"):
        rate_difference([], [])
