"""95 % intervals of a mean over episodes, of a paired difference, and of success rates and their paired difference.

Every interval of a mean in charts, tables, model cards, logs and metric files is `Estimate.interval`: Student's t with
the degrees of freedom of the standard error. `evaluation_estimate` and `paired_improvement` build the estimates of an
evaluation; success rates have Wilson intervals.
"""

from collections.abc import Sequence
from math import fsum, sqrt
from typing import Literal

from zk0.records import EpisodeScore, Evaluation, Record, SetScore

CONFIDENCE = 0.95
EpisodeMetric = Literal["policy_loss", "action_error_degrees"]
"""A field of `EpisodeScore`."""


class Estimate(Record):
    """A mean and its uncertainty."""

    value: float
    se: float | None
    """Standard error of the mean; None for a single episode."""
    dof: float | None
    """Degrees of freedom of the standard error."""

    @property
    def half_width(self) -> float | None:
        """Half the width of the 95 % interval: the 97.5 % quantile of Student's t times the standard error.

        None without a standard error.

        >>> round(Estimate(value=1.0, se=0.1, dof=4).half_width, 3)
        0.278
        """
        if self.se is None or self.dof is None:
            return None
        from scipy.special import stdtrit  # imported here: half a second, and scipy.stats takes a second more

        return float(stdtrit(self.dof, (1 + CONFIDENCE) / 2)) * self.se

    @property
    def interval(self) -> tuple[float, float] | None:
        """Ends of the 95 % interval by Student's t; None without a standard error.

        >>> [round(end, 3) for end in Estimate(value=1.0, se=0.1, dof=4).interval]
        [0.722, 1.278]
        """
        half_width = self.half_width
        return None if half_width is None else (self.value - half_width, self.value + half_width)


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> Estimate:
    """sum(w x) / sum(w) over episodes, with the standard error of a ratio (Cochran 1977, eq. 6.13).

    With equal weights this is the mean and its usual standard error, with n - 1 degrees of freedom.

    >>> weighted_mean([1.0, 3.0], [1, 1])
    Estimate(value=2.0, se=1.0, dof=1.0)
    """
    total, count = fsum(weights), len(values)
    value = fsum(w * x for w, x in zip(weights, values, strict=True)) / total
    if count < 2:
        return Estimate(value=value, se=None, dof=None)
    square = fsum((w / total * (x - value)) ** 2 for w, x in zip(weights, values, strict=True))
    return Estimate(value=value, se=sqrt(count / (count - 1) * square), dof=float(count - 1))


def mean_of_estimates(estimates: Sequence[Estimate]) -> Estimate:
    """Unweighted mean of independent estimates; degrees of freedom by Welch (1938) and Satterthwaite (1946).

    The standard error of the mean of n estimates is sqrt(sum(se^2)) / n. It is None if one of them has none.
    """
    count = len(estimates)
    value = fsum(e.value for e in estimates) / count
    parts = [((e.se / count) ** 2, e.dof) for e in estimates if e.se is not None and e.dof is not None]
    if len(parts) < count:
        return Estimate(value=value, se=None, dof=None)
    square = fsum(s for s, _ in parts)
    spread = fsum(s * s / d for s, d in parts)
    dof = square * square / spread if spread > 0 else min(d for _, d in parts)
    return Estimate(value=value, se=sqrt(square), dof=dof)


def set_estimate(score: SetScore, metric: EpisodeMetric = "policy_loss") -> Estimate:
    """Mean of one evaluation set over its episodes, weighted by their actions."""
    episodes = score.episodes
    return weighted_mean([_value(e, metric) for e in episodes], [e.actions for e in episodes])


def evaluation_estimate(evaluation: Evaluation, metric: EpisodeMetric = "policy_loss") -> Estimate:
    """Mean of an evaluation over its sets: the source of every interval of a loss or an action error.

    Its value and standard error are `policy_loss` (or `action_error_degrees`) and `policy_loss_se` of the evaluation.
    """
    return mean_of_estimates([set_estimate(score, metric) for score in evaluation.sets])


def crossed_mean(rows: Sequence[Sequence[float]]) -> Estimate:
    """Mean of a table with one value per training seed (row) and episode (column), both drawn at random.

    var = (MS_rows + MS_columns - MS_rest) / cells, for the two-way layout with random rows and columns (Cornfield and
    Tukey 1956), at least the variance from the larger of MS_rows and MS_columns alone. Degrees of freedom by
    Satterthwaite (1946), at least those of the shorter side. With one row the interval is over columns only, with one
    column over rows only.

    >>> found = crossed_mean([[1.0, 2.0], [3.0, 5.0]])
    >>> found.value, round(found.se, 3), round(found.dof, 3)
    (2.75, 1.436, 1.54)
    """
    count, width = len(rows), len(rows[0])
    if count == 1 or width == 1:
        values = [value for row in rows for value in row]
        return weighted_mean(values, [1.0] * len(values))
    of_rows = [fsum(row) / width for row in rows]
    of_columns = [fsum(column) / count for column in zip(*rows, strict=True)]
    value = fsum(of_rows) / count
    between_rows = width * fsum((r - value) ** 2 for r in of_rows) / (count - 1)
    between_columns = count * fsum((c - value) ** 2 for c in of_columns) / (width - 1)
    rest_dof = (count - 1) * (width - 1)
    rest = fsum((rows[i][j] - r - c + value) ** 2 for i, r in enumerate(of_rows) for j, c in enumerate(of_columns))
    rest /= rest_dof
    total = max(between_rows + between_columns - rest, between_rows, between_columns)
    spread = between_rows**2 / (count - 1) + between_columns**2 / (width - 1) + rest**2 / rest_dof
    fewest = float(min(count, width) - 1)
    dof = max(total * total / spread, fewest) if spread > 0 else fewest
    return Estimate(value=value, se=sqrt(total / (count * width)), dof=dof)


def crossed_interval(rows: Sequence[Sequence[float]]) -> tuple[float, tuple[float, float] | None]:
    """`crossed_mean` as the mean and its 95 % interval; no interval if all values are equal.

    >>> crossed_interval([[1.0, 1.0], [1.0, 1.0]])
    (1.0, None)
    """
    found = crossed_mean(rows)
    varied = any(value != rows[0][0] for row in rows for value in row)
    return found.value, found.interval if varied else None


def comparable(one: Evaluation, other: Evaluation) -> bool:
    """Whether two evaluations used the same frames, normalization, seed and draws, so that they can be paired."""
    return _evaluation_key(one) == _evaluation_key(other)


def paired_improvement(before: Evaluation, after: Evaluation, metric: EpisodeMetric = "policy_loss") -> Estimate:
    """Mean over the sets of before - after, paired: differences are taken episode by episode, then averaged.

    Both evaluations used the same frames and noise, so the difficulty of an episode cancels in its difference.

    Raises:
        ValueError: the evaluations are not comparable.
    """
    if not comparable(before, after):
        raise ValueError(f"the evaluations of rounds {before.round} and {after.round} are not comparable")
    pairs = zip(before.sets, after.sets, strict=True)
    return mean_of_estimates([set_improvement(one, other, metric) for one, other in pairs])


def set_improvement(before: SetScore, after: SetScore, metric: EpisodeMetric = "policy_loss") -> Estimate:
    """Paired difference before - after on one evaluation set.

    Raises:
        ValueError: the two scores are not of the same frames.
    """
    if _frames(before) != _frames(after):
        raise ValueError(f"{before.dataset} and {after.dataset}: not the same frames")
    pairs = list(zip(before.episodes, after.episodes, strict=True))
    differences = [_value(b, metric) - _value(a, metric) for b, a in pairs]
    return weighted_mean(differences, [b.actions for b, _ in pairs])


def wilson_interval(successes: int, attempts: int) -> tuple[float, float]:
    """95 % interval of a success rate (Wilson 1927; Newcombe 1998, method 3).

    >>> [round(end, 3) for end in wilson_interval(1, 3)]
    [0.061, 0.792]
    >>> [round(end, 3) for end in wilson_interval(10, 10)]
    [0.722, 1.0]

    Raises:
        ValueError: there was no attempt, or there were more successes than attempts.
    """
    if not 0 <= successes <= attempts or attempts == 0:
        raise ValueError(f"{successes} successes of {attempts} attempts have no rate")
    from scipy.special import ndtri  # imported here: half a second, and scipy.stats takes a second more

    z, rate = float(ndtri((1 + CONFIDENCE) / 2)), successes / attempts
    scale = 2 * (attempts + z**2)
    center = (2 * attempts * rate + z**2) / scale
    half_width = z / scale * sqrt(4 * attempts * rate * (1 - rate) + z**2)
    return center - half_width if successes else 0.0, center + half_width if successes < attempts else 1.0


def rate_difference(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, tuple[float, float]]:
    """after - before of two success rates over the same attempts, and its 95 % interval (Newcombe 1998, method 10).

    >>> difference, ends = rate_difference([False] * 10, [True] * 6 + [False] * 4)
    >>> difference, [round(end, 3) for end in ends]
    (0.6, [0.201, 0.832])

    Raises:
        ValueError: there was no attempt, or not as many after as before.
    """
    n = len(before)
    pairs = list(zip(before, after, strict=True))
    both, neither = pairs.count((True, True)), pairs.count((False, False))
    only_before, only_after = pairs.count((True, False)), pairs.count((False, True))
    first, last = (both + only_before) / n if n else 0.0, (both + only_after) / n if n else 0.0
    low_first, high_first = wilson_interval(both + only_before, n)
    low_last, high_last = wilson_interval(both + only_after, n)
    product = float(both * neither - only_before * only_after)
    product = max(product - n / 2, 0.0) if product >= 0 else product
    margins = (both + only_before) * (neither + only_after) * (both + only_after) * (neither + only_before)
    phi = product / sqrt(margins) if margins else 0.0

    def spread(one: float, other: float) -> float:
        return sqrt(max(one * one - 2 * phi * one * other + other * other, 0.0))

    low = last - first - spread(last - low_last, high_first - first)
    high = last - first + spread(first - low_first, high_last - last)
    return last - first, (low, high)


def _evaluation_key(evaluation: Evaluation) -> tuple[object, ...]:
    sets = tuple((s.dataset, *_frames(s)) for s in evaluation.sets)
    return evaluation.normalization, evaluation.seed, evaluation.times, sets


def _frames(score: SetScore) -> tuple[tuple[int, int, int], ...]:
    return tuple((e.episode, e.frames, e.actions) for e in score.episodes)


def _value(episode: EpisodeScore, metric: EpisodeMetric) -> float:
    return episode.policy_loss if metric == "policy_loss" else episode.action_error_degrees
