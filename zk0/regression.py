"""Is tonight worse than the last good night, beyond what measurements vary by themselves."""

from collections.abc import Sequence
from math import exp, fsum, log, sqrt
from typing import Literal

from zk0.interval import Estimate, measured_alike, paired_fall, weighted_mean
from zk0.nights import Night, PinnedSession
from zk0.records import Record

NIGHTS = 14
"""So many good nights tell how much a measurement varies from night to night."""
Outcome = Literal["new", "same", "better", "worse"]


class Comparison(Record):
    """One measurement tonight and in the last good night."""

    name: str
    before: float | None
    """None where it was not measured then."""
    now: float
    change: float | None
    """now / before of times; now - before of a loss. Above 1, or 0, is worse."""
    interval: tuple[float, float] | None
    """95 % interval of the change."""
    outcome: Outcome

    def told(self) -> str:
        """One sentence.

        >>> times = {"name": "train: kv / lerobot", "before": 0.1, "now": 0.15, "change": 1.5}
        >>> Comparison(**times, interval=(1.4, 1.6), outcome="worse").told()
        'train: kv / lerobot: 0.15, 0.1 before: worse (change 1.5, 95 % interval 1.4 to 1.6)'
        """
        if self.before is None or self.change is None:
            return f"{self.name}: {self.now:.4g}, nothing to compare with"
        ends = f"{self.interval[0]:.3g} to {self.interval[1]:.3g}" if self.interval else "unknown"
        changed = f"(change {self.change:.3g}, 95 % interval {ends})"
        return f"{self.name}: {self.now:.4g}, {self.before:.4g} before: {self.outcome} {changed}"


def compare(tonight: Night, nights: Sequence[Night], least: float) -> list[Comparison]:
    """Every measurement of tonight against the last good night on the same machine.

    A time is worse when the 95 % interval of its ratio lies above `least`; a loss when the interval of its rise,
    paired over episodes, lies above zero. The noise of a time is what its repeats show, or what it varies by from one
    good night to the next, whichever is larger.
    """
    good = [night for night in nights if night.good and night.machine == tonight.machine][-NIGHTS:]
    found = [_compare_times(s.name, s.ratios, _ratios(s.name, good), least) for s in tonight.samples]
    for session in tonight.sessions:
        before = [s for night in good for s in night.sessions if s.name == session.name]
        found.append(_compare_rounds(session, before, least))
        found.append(_compare_losses(session, before))
    return found


def changed_weights(tonight: Night, nights: Sequence[Night]) -> list[str]:
    """Pinned sessions that end with other weights than in the last good night with the same machine and versions."""
    here = (tonight.machine, tonight.versions)
    last = next((n for n in reversed(nights) if n.good and (n.machine, n.versions) == here), None)
    before = {s.name: s.digest for s in last.sessions} if last else {}
    return [s.name for s in tonight.sessions if before.get(s.name, s.digest) != s.digest]


def _ratios(name: str, nights: Sequence[Night]) -> list[tuple[float, ...]]:
    return [s.ratios for night in nights for s in night.samples if s.name == name]


def _compare_times(name: str, now: Sequence[float], nights: Sequence[Sequence[float]], least: float) -> Comparison:
    """Repeats are independent within a night and between nights (Welch)."""
    centre = _log_mean(now)
    if not nights:
        return _new(name, exp(centre.value))
    last = _log_mean(nights[-1])
    change = _difference(centre, last)
    return _times(name, (exp(last.value), exp(centre.value)), _steadied(change, [_log_mean(n) for n in nights]), least)


def _compare_rounds(now: PinnedSession, sessions: Sequence[PinnedSession], least: float) -> Comparison:
    """Round by round: what is slow in a round is slow in it every night."""
    name = f"{now.name}: seconds a round"
    centre = _log_mean(now.seconds)
    fitting = [s for s in sessions if len(s.seconds) == len(now.seconds)]
    if not fitting:
        return _new(name, exp(centre.value))
    last = fitting[-1]
    pairs = zip(now.seconds, last.seconds, strict=True)
    change = weighted_mean([log(a / b) for a, b in pairs], [1.0] * len(now.seconds))
    means = [_log_mean(s.seconds) for s in fitting]
    return _times(name, (exp(means[-1].value), exp(centre.value)), _steadied(change, means), least)


def _compare_losses(now: PinnedSession, sessions: Sequence[PinnedSession]) -> Comparison:
    name = f"{now.name}: policy loss on unseen data"
    if not sessions or not measured_alike(sessions[-1].evaluation, now.evaluation):
        return _new(name, now.evaluation.policy_loss)
    before = sessions[-1].evaluation
    rise = paired_fall(now.evaluation, before)
    return Comparison(
        name=name,
        before=before.policy_loss,
        now=now.evaluation.policy_loss,
        change=rise.value,
        interval=rise.interval,
        outcome=_outcome(rise.interval, 0.0, 0.0),
    )


def _times(name: str, values: tuple[float, float], change: Estimate, least: float) -> Comparison:
    ends = change.interval
    return Comparison(
        name=name,
        before=values[0],
        now=values[1],
        change=exp(change.value),
        interval=(exp(ends[0]), exp(ends[1])) if ends else None,
        outcome=_outcome(ends, log(least), -log(least)),
    )


def _new(name: str, now: float) -> Comparison:
    return Comparison(name=name, before=None, now=now, change=None, interval=None, outcome="new")


def _outcome(interval: tuple[float, float] | None, worse_above: float, better_below: float) -> Outcome:
    if interval is None:
        return "same"
    return "worse" if interval[0] > worse_above else "better" if interval[1] < better_below else "same"


def _log_mean(values: Sequence[float]) -> Estimate:
    return weighted_mean([log(v) for v in values], [1.0] * len(values))


def _difference(now: Estimate, before: Estimate) -> Estimate:
    """now - before of independent means, degrees of freedom after Welch and Satterthwaite (1946)."""
    value = now.value - before.value
    if now.se is None or before.se is None or now.dof is None or before.dof is None:
        return Estimate(value=value, se=None, dof=None)
    square = now.se**2 + before.se**2
    spread = now.se**4 / now.dof + before.se**4 / before.dof
    return Estimate(value=value, se=sqrt(square), dof=square**2 / spread if spread > 0 else now.dof + before.dof)


def _steadied(change: Estimate, nights: Sequence[Estimate]) -> Estimate:
    """The change with at least the noise of a difference between two good nights (three or more of them)."""
    if len(nights) < 3:
        return change
    values = [night.value for night in nights]
    centre = fsum(values) / len(values)
    noise = sqrt(2 * fsum((v - centre) ** 2 for v in values) / (len(values) - 1))
    if change.se is not None and change.se >= noise:
        return change
    return Estimate(value=change.value, se=noise, dof=float(len(values) - 1))
