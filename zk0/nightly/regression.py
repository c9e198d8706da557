"""Regressions of a nightly run: measurements that are significantly worse than in the reference run.

The reference is the last earlier run on the same machine that has no regressions, or whose regressions were accepted.
"""

from collections.abc import Sequence
from math import exp, fsum, log, sqrt
from typing import Literal

from zk0.nightly.nightly_ledger import NightlyRun, PinnedSessionResult
from zk0.records import Record
from zk0.stats.intervals import Estimate, comparable, paired_improvement, weighted_mean

NOISE_NIGHTS = 14
"""Number of last reference runs that the noise between nights is estimated from."""
ComparisonOutcome = Literal["new", "same", "better", "worse"]


class MeasurementComparison(Record):
    """One measurement in a run and in its reference."""

    name: str
    before: float | None
    """Value in the reference; None if it was not measured there."""
    now: float
    change: float | None
    """now / before for times, now - before for a loss. Above 1, or 0, is worse."""
    interval: tuple[float, float] | None
    """95 % interval of the change."""
    outcome: ComparisonOutcome

    def summary(self) -> str:
        """The comparison in one line.

        >>> times = {"name": "train: kv / lerobot", "before": 0.1, "now": 0.15, "change": 1.5}
        >>> MeasurementComparison(**times, interval=(1.4, 1.6), outcome="worse").summary()
        'train: kv / lerobot: 0.15, 0.1 before: worse (change 1.5, 95 % interval 1.4 to 1.6)'
        """
        if self.before is None or self.change is None:
            return f"{self.name}: {self.now:.4g}, nothing to compare with"
        ends = f"{self.interval[0]:.3g} to {self.interval[1]:.3g}" if self.interval else "unknown"
        change = f"(change {self.change:.3g}, 95 % interval {ends})"
        return f"{self.name}: {self.now:.4g}, {self.before:.4g} before: {self.outcome} {change}"


def compare_nightly_runs(
    tonight: NightlyRun, nights: Sequence[NightlyRun], worse_ratio: float
) -> list[MeasurementComparison]:
    """Compare every measurement of a run with the reference run.

    A time is worse if the 95 % interval of its ratio lies above `worse_ratio`; a loss is worse if the interval of its
    increase, paired over episodes, lies above zero. The noise of a time is the larger of two estimates: from its
    repeats, and from its variation between the last reference runs.

    Args:
        tonight: the new run.
        nights: the earlier runs, oldest first.
        worse_ratio: smallest ratio of times that counts as worse, above 1.
    """
    references = [night for night in nights if night.is_reference and night.machine == tonight.machine]
    references = references[-NOISE_NIGHTS:]
    found = [_compare_times(s.name, s.ratios, _ratios(s.name, references), worse_ratio) for s in tonight.samples]
    for session in tonight.sessions:
        before = [s for night in references for s in night.sessions if s.name == session.name]
        found.append(_compare_rounds(session, before, worse_ratio))
        found.append(_compare_losses(session, before))
    return found


def changed_weights(tonight: NightlyRun, nights: Sequence[NightlyRun]) -> list[str]:
    """Pinned sessions whose final weights differ from the last reference run with the same machine and versions."""
    environment = (tonight.machine, tonight.versions)
    last = next((n for n in reversed(nights) if n.is_reference and (n.machine, n.versions) == environment), None)
    before = {s.name: s.digest for s in last.sessions} if last else {}
    return [s.name for s in tonight.sessions if before.get(s.name, s.digest) != s.digest]


def _ratios(name: str, nights: Sequence[NightlyRun]) -> list[tuple[float, ...]]:
    return [s.ratios for night in nights for s in night.samples if s.name == name]


def _compare_times(
    name: str, now: Sequence[float], nights: Sequence[Sequence[float]], worse_ratio: float
) -> MeasurementComparison:
    """Compare ratios of unpaired repeats, which are independent within a night and between nights (Welch)."""
    mean = _log_mean(now)
    if not nights:
        return _new(name, exp(mean.value))
    last = _log_mean(nights[-1])
    change = _with_night_noise(_difference(mean, last), [_log_mean(n) for n in nights])
    return _time_comparison(name, (exp(last.value), exp(mean.value)), change, worse_ratio)


def _compare_rounds(
    now: PinnedSessionResult, sessions: Sequence[PinnedSessionResult], worse_ratio: float
) -> MeasurementComparison:
    """Compare times paired by round, because the same round is slow in every night."""
    name = f"{now.name}: seconds per round"
    mean = _log_mean(now.seconds)
    of_same_length = [s for s in sessions if len(s.seconds) == len(now.seconds)]
    if not of_same_length:
        return _new(name, exp(mean.value))
    pairs = zip(now.seconds, of_same_length[-1].seconds, strict=True)
    change = weighted_mean([log(a / b) for a, b in pairs], [1.0] * len(now.seconds))
    means = [_log_mean(s.seconds) for s in of_same_length]
    values = (exp(means[-1].value), exp(mean.value))
    return _time_comparison(name, values, _with_night_noise(change, means), worse_ratio)


def _compare_losses(now: PinnedSessionResult, sessions: Sequence[PinnedSessionResult]) -> MeasurementComparison:
    name = f"{now.name}: policy loss on unseen data"
    if not sessions or not comparable(sessions[-1].evaluation, now.evaluation):
        return _new(name, now.evaluation.policy_loss)
    before = sessions[-1].evaluation
    increase = paired_improvement(now.evaluation, before)
    return MeasurementComparison(
        name=name,
        before=before.policy_loss,
        now=now.evaluation.policy_loss,
        change=increase.value,
        interval=increase.interval,
        outcome=_outcome(increase.interval, 0.0, 0.0),
    )


def _time_comparison(
    name: str, values: tuple[float, float], change: Estimate, worse_ratio: float
) -> MeasurementComparison:
    """`values` are those before and now; `change` is the logarithm of their ratio."""
    ends = change.interval
    return MeasurementComparison(
        name=name,
        before=values[0],
        now=values[1],
        change=exp(change.value),
        interval=(exp(ends[0]), exp(ends[1])) if ends else None,
        outcome=_outcome(ends, log(worse_ratio), -log(worse_ratio)),
    )


def _new(name: str, now: float) -> MeasurementComparison:
    return MeasurementComparison(name=name, before=None, now=now, change=None, interval=None, outcome="new")


def _outcome(interval: tuple[float, float] | None, worse_above: float, better_below: float) -> ComparisonOutcome:
    if interval is None:
        return "same"
    return "worse" if interval[0] > worse_above else "better" if interval[1] < better_below else "same"


def _log_mean(values: Sequence[float]) -> Estimate:
    return weighted_mean([log(v) for v in values], [1.0] * len(values))


def _difference(now: Estimate, before: Estimate) -> Estimate:
    """now - before of independent means; degrees of freedom by Welch (1938) and Satterthwaite (1946)."""
    value = now.value - before.value
    if now.se is None or before.se is None or now.dof is None or before.dof is None:
        return Estimate(value=value, se=None, dof=None)
    square = now.se**2 + before.se**2
    spread = now.se**4 / now.dof + before.se**4 / before.dof
    return Estimate(value=value, se=sqrt(square), dof=square**2 / spread if spread > 0 else now.dof + before.dof)


def _with_night_noise(change: Estimate, nights: Sequence[Estimate]) -> Estimate:
    """The change with at least the standard error of a difference between two nights, from three nights or more."""
    if len(nights) < 3:
        return change
    values = [night.value for night in nights]
    mean = fsum(values) / len(values)
    noise = sqrt(2 * fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    if change.se is not None and change.se >= noise:
        return change
    return Estimate(value=change.value, se=noise, dof=float(len(values) - 1))
