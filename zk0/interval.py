"""95 % intervals: of a mean over episodes, of a difference that is paired episode by episode, of a rate."""

from collections.abc import Sequence
from math import fsum, sqrt
from typing import Literal

from zk0.records import EpisodeScore, Evaluation, Record, SetScore

Z_95 = 1.959963984540054
Metric = Literal["policy_loss", "action_error_degrees"]


class Estimate(Record):
    """A mean, and how surely it is known."""

    value: float
    se: float | None
    """Standard error; None where there is only one episode."""
    dof: float | None
    """Degrees of freedom of the standard error."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval by Student's t, or None without a standard error.

        >>> [round(end, 3) for end in Estimate(value=1.0, se=0.1, dof=4).interval]
        [0.722, 1.278]
        """
        if self.se is None or self.dof is None:
            return None
        from scipy.special import stdtrit  # takes a while

        half = float(stdtrit(self.dof, 0.975)) * self.se
        return self.value - half, self.value + half


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> Estimate:
    """sum(w x) / sum(w) over episodes, its standard error that of a ratio (Cochran 1977, eq. 6.13).

    With equal weights this is the mean and its usual standard error.

    >>> weighted_mean([1.0, 3.0], [1, 1])
    Estimate(value=2.0, se=1.0, dof=1.0)
    """
    total, count = fsum(weights), len(values)
    value = fsum(w * x for w, x in zip(weights, values, strict=True)) / total
    if count < 2:
        return Estimate(value=value, se=None, dof=None)
    square = fsum((w / total * (x - value)) ** 2 for w, x in zip(weights, values, strict=True))
    return Estimate(value=value, se=sqrt(count / (count - 1) * square), dof=float(count - 1))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """Plain mean of independent estimates; degrees of freedom after Welch and Satterthwaite (1946)."""
    count = len(estimates)
    value = fsum(e.value for e in estimates) / count
    parts = [((e.se / count) ** 2, e.dof) for e in estimates if e.se is not None and e.dof is not None]
    if len(parts) < count:
        return Estimate(value=value, se=None, dof=None)
    square = fsum(s for s, _ in parts)
    spread = fsum(s * s / d for s, d in parts)
    dof = square * square / spread if spread > 0 else min(d for _, d in parts)
    return Estimate(value=value, se=sqrt(square), dof=dof)


def crossed_mean(rows: Sequence[Sequence[float]]) -> Estimate:
    """Mean of a table with one value for each training seed (row) and episode (column), both drawn at random.

    var = (MS_rows + MS_columns - MS_rest) / cells, of the two-way layout with random rows and columns (Cornfield and
    Tukey 1956), never below what the larger of the first two alone gives; degrees of freedom after Satterthwaite
    (1946), never fewer than the smaller side has. With one row the interval is over columns only, with one column over
    rows.

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


def measured_alike(one: Evaluation, other: Evaluation) -> bool:
    """Whether the two judged the very same frames in the very same way, so that they can be paired."""
    return _way(one) == _way(other)


def paired_fall(before: Evaluation, after: Evaluation, metric: Metric = "policy_loss") -> Estimate:
    """before - after, mean over the sets, paired: differences are taken episode by episode, then averaged.

    Both were measured on the same frames with the same noise, so what is hard in an episode is hard for both and
    leaves the difference alone.

    Raises:
        ValueError: they were not measured alike.
    """
    if not measured_alike(before, after):
        raise ValueError(f"rounds {before.round} and {after.round} were not measured alike")
    return mean_of([set_fall(b, a, metric) for b, a in zip(before.sets, after.sets, strict=True)])


def set_fall(before: SetScore, after: SetScore, metric: Metric = "policy_loss") -> Estimate:
    """The paired difference before - after on one set that was measured alike.

    Raises:
        ValueError: the two do not hold the same frames.
    """
    if _frames(before) != _frames(after):
        raise ValueError(f"{before.dataset} and {after.dataset}: not the same frames")
    pairs = list(zip(before.episodes, after.episodes, strict=True))
    differences = [_value(b, metric) - _value(a, metric) for b, a in pairs]
    return weighted_mean(differences, [b.actions for b, _ in pairs])


def wilson(successes: int, attempts: int) -> tuple[float, float]:
    """95 % interval of a success rate (Wilson 1927).

    >>> [round(end, 3) for end in wilson(1, 3)]
    [0.061, 0.792]
    >>> [round(end, 3) for end in wilson(10, 10)]
    [0.722, 1.0]

    Raises:
        ValueError: there was no attempt, or there were more successes than attempts.
    """
    if not 0 <= successes <= attempts or attempts == 0:
        raise ValueError(f"{successes} successes of {attempts} attempts have no rate")
    share, square = successes / attempts, Z_95**2
    centre = share + square / (2 * attempts)
    spread = Z_95 * sqrt(share * (1 - share) / attempts + square / (4 * attempts**2))
    below = 1 + square / attempts
    return max((centre - spread) / below, 0.0), min((centre + spread) / below, 1.0)


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
    low_first, high_first = wilson(both + only_before, n)
    low_last, high_last = wilson(both + only_after, n)
    product = float(both * neither - only_before * only_after)
    product = max(product - n / 2, 0.0) if product >= 0 else product
    margins = (both + only_before) * (neither + only_after) * (both + only_after) * (neither + only_before)
    phi = product / sqrt(margins) if margins else 0.0

    def spread(one: float, other: float) -> float:
        return sqrt(max(one * one - 2 * phi * one * other + other * other, 0.0))

    low = last - first - spread(last - low_last, high_first - first)
    high = last - first + spread(first - low_first, high_last - last)
    return last - first, (low, high)


def _way(judged: Evaluation) -> tuple[object, ...]:
    sets = tuple((s.dataset, *_frames(s)) for s in judged.sets)
    return judged.normalization, judged.seed, judged.times, sets


def _frames(score: SetScore) -> tuple[tuple[int, int, int], ...]:
    return tuple((e.episode, e.frames, e.actions) for e in score.episodes)


def _value(episode: EpisodeScore, metric: Metric) -> float:
    return episode.policy_loss if metric == "policy_loss" else episode.action_error_degrees
