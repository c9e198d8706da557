"""Intervals against hand calculations and scipy."""

import numpy as np
import pytest
from scipy import stats

from zk0.records import EpisodeScore, Evaluation, SetScore
from zk0.stats.intervals import (
    Estimate,
    comparable,
    evaluation_estimate,
    mean_of_estimates,
    paired_improvement,
    rate_difference,
    set_improvement,
    weighted_mean,
    wilson_interval,
)


def scored(losses: list[float], actions: list[int], name: str = "a") -> SetScore:
    episodes = tuple(
        EpisodeScore(episode=i, frames=n, actions=n, policy_loss=x, action_error_degrees=10 * x)
        for i, (x, n) in enumerate(zip(losses, actions, strict=True))
    )
    return SetScore(
        dataset=name, episodes=episodes, frames=sum(actions), policy_loss=float(np.average(losses, weights=actions)),
        policy_loss_se=None, action_error_degrees=1.0, joint_error_degrees=(), horizon_error_degrees=(),
    )  # fmt: skip


def evaluation(*sets: SetScore, **changes: object) -> Evaluation:
    values = {"round": 0, "policy_loss": 1.0, "policy_loss_se": None, "action_error_degrees": 1.0, "seconds": 1.0}
    return Evaluation(**values | {"sets": sets, "normalization": "pooled", "seed": 1, "times": 8} | changes)


def test_equal_weights_give_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    difficulty = rng.normal(2, 1, 12)  # the same episodes are difficult for both models
    before, after = difficulty + rng.normal(0, 0.1, 12), difficulty - 0.2 + rng.normal(0, 0.1, 12)
    found = set_improvement(scored(before.tolist(), [7] * 12), scored(after.tolist(), [7] * 12))
    expected = stats.ttest_rel(before, after)
    ends = expected.confidence_interval(0.95)
    assert found.interval == pytest.approx((ends.low, ends.high))
    assert ends.low > 0
    unpaired = stats.ttest_ind(before, after).confidence_interval(0.95)
    assert unpaired.low < 0  # without pairing, the difference is not significant


def test_the_mean_is_weighted_by_the_actions_of_an_episode() -> None:
    found = weighted_mean([1.0, 2.0, 6.0], [10, 20, 10])
    assert found.value == pytest.approx(2.75)
    parts = [0.25 * 1.75, 0.5 * 0.75, 0.25 * 3.25]
    assert found.se == pytest.approx((1.5 * sum(p * p for p in parts)) ** 0.5)
    assert weighted_mean([3.0], [9]) == Estimate(value=3.0, se=None, dof=None)


def test_the_interval_of_a_ratio_has_its_nominal_coverage() -> None:
    """About 95 % of the intervals from 400 samples of episodes of unequal length contain the true ratio."""
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
    found = mean_of_estimates([weighted_mean(v.tolist(), [1] * len(v)) for v in (one, two)])
    welch = stats.ttest_ind(one, -two, equal_var=False).confidence_interval(0.95)  # of the sum of the two means
    assert found.interval == pytest.approx((welch.low / 2, welch.high / 2))
    assert mean_of_estimates([found, Estimate(value=0.0, se=None, dof=None)]).interval is None
    exact = Estimate(value=1.0, se=0.0, dof=3.0)
    assert mean_of_estimates([exact, exact]).interval == (1.0, 1.0)


def test_improvement_over_two_sets_and_both_metrics() -> None:
    before = evaluation(scored([2.0, 4.0], [5, 5]), scored([1.0, 1.0], [5, 5], "b"))
    after = evaluation(scored([1.0, 2.0], [5, 5]), scored([2.0, 1.0], [5, 5], "b"), round=4)
    assert paired_improvement(before, after).value == pytest.approx((1.5 - 0.5) / 2)
    assert paired_improvement(before, after, "action_error_degrees").value == pytest.approx(5.0)


@pytest.mark.parametrize("change", [{"seed": 2}, {"times": 4}, {"normalization": "client"}, {"sets": ()}])
def test_evaluations_that_are_not_comparable_are_not_paired(change: dict[str, object]) -> None:
    one = evaluation(scored([1.0, 2.0], [5, 5]))
    other = one.model_copy(update=change)
    assert comparable(one, one.model_copy(update={"round": 9, "seconds": 7.0, "policy_loss": 0.0}))
    assert not comparable(one, other)
    with pytest.raises(ValueError, match="not comparable"):
        paired_improvement(one, other)


def test_scores_of_different_frames_are_not_paired() -> None:
    with pytest.raises(ValueError, match="not the same frames"):
        set_improvement(scored([1.0, 2.0], [5, 5]), scored([1.0, 2.0], [5, 6]))


@pytest.mark.parametrize("episodes", [3, 6])
def test_the_interval_of_an_evaluation_has_its_nominal_coverage(episodes: int) -> None:
    """About 95 % of 1000 intervals contain the true loss; +-1.96 SE would contain it in 81 % and 89 % of the cases."""
    rng, hits = np.random.default_rng(5), 0
    for _ in range(1000):
        losses = rng.normal(15, 1, episodes).tolist()
        ends = evaluation_estimate(evaluation(scored(losses, [100] * episodes))).interval
        assert ends is not None
        hits += ends[0] <= 15 <= ends[1]
    assert 0.93 <= hits / 1000 <= 0.97


def test_the_interval_of_an_evaluation_is_students_t_with_the_standard_error_over_its_sets() -> None:
    one, two = [1.0, 2.0, 4.0], [0.5, 0.7, 0.6, 0.4]
    found = evaluation_estimate(evaluation(scored(one, [5] * 3), scored(two, [5] * 4, "b")))
    squares = [np.var(v, ddof=1) / len(v) / 4 for v in (one, two)]
    dof = sum(squares) ** 2 / (squares[0] ** 2 / 2 + squares[1] ** 2 / 3)
    assert found.value == pytest.approx((np.mean(one) + np.mean(two)) / 2)
    assert found.se == pytest.approx(sum(squares) ** 0.5)
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, dof) * sum(squares) ** 0.5)
    assert found.interval == pytest.approx((found.value - found.half_width, found.value + found.half_width))
    alone = evaluation_estimate(evaluation(scored([1.0], [5])), "action_error_degrees")
    assert (alone.value, alone.half_width, alone.interval) == (10.0, None, None)


@pytest.mark.parametrize("attempts", [1, 2, 3, 10, 50, 333])
def test_wilson_interval_equals_its_formula(attempts: int) -> None:
    """Against the closed form (Wilson 1927) to 1e-12."""
    z = 1.959963984540054
    for successes in range(attempts + 1):
        share = successes / attempts
        center = share + z**2 / (2 * attempts)
        spread = z * (share * (1 - share) / attempts + (z / 2 / attempts) ** 2) ** 0.5
        expected = [(center + sign * spread) / (1 + z**2 / attempts) for sign in (-1, 1)]
        assert wilson_interval(successes, attempts) == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.parametrize("attempts", [1, 3, 20])
def test_wilson_interval_solves_its_equation(attempts: int) -> None:
    """Both ends p satisfy (share - p)^2 = z^2 p (1 - p) / n."""
    for successes in range(attempts + 1):
        share = successes / attempts
        for end in wilson_interval(successes, attempts):
            assert (share - end) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / attempts, abs=1e-12)


@pytest.mark.parametrize(("successes", "attempts"), [(0, 0), (2, 1), (-1, 3)])
def test_wilson_interval_refuses_invalid_counts(successes: int, attempts: int) -> None:
    with pytest.raises(ValueError, match="no rate"):
        wilson_interval(successes, attempts)


def test_the_interval_of_a_rate_difference_has_its_nominal_coverage() -> None:
    """All outcomes of 12 pairs, weighted by their probability: about 95 % of the intervals hold the true difference."""
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


def test_equal_successes_give_a_narrower_interval_than_different_ones() -> None:
    results = [True] * 10 + [False] * 10
    same = rate_difference(results, results)
    crossed = rate_difference(results, results[::-1])
    assert same[0] == crossed[0] == 0
    assert same[1][1] - same[1][0] < (crossed[1][1] - crossed[1][0]) / 2
    with pytest.raises(ValueError, match="no rate"):
        rate_difference([], [])
