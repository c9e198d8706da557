"""What a session achieved, in plain words and with its uncertainty."""

from collections.abc import Sequence
from typing import Literal

from zk0.interval import measured_alike, paired_fall, wilson
from zk0.records import Record, Rollout, RoundRecord
from zk0.report.figures import fixed, percent
from zk0.report.metrics import ordered
from zk0.report.rollout_tables import of_round, shown_rounds


class Change(Record):
    """How the loss on unseen data moved between the first and the last measured round."""

    first_round: int
    last_round: int
    first: float
    last: float
    fall: float
    """first - last: positive when the loss fell."""
    interval: tuple[float, float] | None
    """95 % interval of the fall, paired over episodes; None where a set has a single episode."""
    comparable: bool
    """Both were measured in the same way on the same sets."""


class Verdict(Record):
    """The sentences on top of a report."""

    outcome: Literal["good", "bad", "open"]
    headline: str
    sentences: tuple[str, ...]


def loss_change(history: Sequence[RoundRecord]) -> Change | None:
    """From the first to the last judged round, or None where fewer than two were judged."""
    judged = [r.evaluation for r in ordered(history) if r.evaluation]
    if len(judged) < 2:
        return None
    first, last = judged[0], judged[-1]
    comparable = measured_alike(first, last)
    return Change(
        first_round=first.round,
        last_round=last.round,
        first=first.policy_loss,
        last=last.policy_loss,
        fall=first.policy_loss - last.policy_loss,
        interval=paired_fall(first, last).interval if comparable else None,
        comparable=comparable,
    )


def verdict(history: Sequence[RoundRecord], rollouts: Sequence[Rollout]) -> Verdict:
    """Did the loss on unseen data fall, by how much, and does the arm do its tasks."""
    change = loss_change(history)
    outcome, headline = _outcome(change)
    sentences = [_loss_sentence(change, history), *([success_sentence(rollouts)] if rollouts else [])]
    return Verdict(outcome=outcome, headline=headline, sentences=tuple(sentences))


def _outcome(change: Change | None) -> tuple[Literal["good", "bad", "open"], str]:
    if change is None:
        return "open", "Too little was measured to tell whether anything was learned."
    if not change.comparable:
        return "open", "The losses of the first and the last round cannot be compared."
    share = f" by {percent(abs(change.fall) / change.first)}" if change.first > 0 else ""
    if change.interval is None:
        moved = "fell" if change.fall > 0 else "rose" if change.fall < 0 else "did not move"
        return "open", f"The loss on unseen data {moved}{share if change.fall else ''}; how surely is not known."
    low, high = change.interval
    if low > 0:
        return "good", f"The loss on unseen data fell{share}."
    if high < 0:
        return "bad", f"The loss on unseen data rose{share}."
    return "open", "No clear change of the loss on unseen data."


def success_sentence(rollouts: Sequence[Rollout]) -> str:
    """How often the last model did its tasks, with the interval, and how often the first one did.

    >>> attempt = Rollout(round=3, checkpoint="", task="lift", conditions="", seed=1, success=True, steps=9,
    ...     duration_seconds=0.9, fps=10, smoothness=None)
    >>> success_sentence([attempt])
    'In closed loop, 1 of 1 attempts succeeded (100 %; 95 % Wilson interval 21 % to 100 %).'
    """
    if not rollouts:
        return "No closed-loop attempt was made."
    shown = shown_rounds(rollouts)
    last, first = of_round(rollouts, shown[-1]), of_round(rollouts, shown[0])
    successes, attempts = sum(r.success for r in last), len(last)
    ends = wilson(successes, attempts)
    share = f"{percent(successes / attempts)}; 95 % Wilson interval {percent(ends[0])} to {percent(ends[1])}"
    before = f", {sum(r.success for r in first)} of {len(first)} in round {shown[0]}" if len(shown) > 1 else ""
    return f"In closed loop, {successes} of {attempts} attempts succeeded ({share}){before}."


def _loss_sentence(change: Change | None, history: Sequence[RoundRecord]) -> str:
    if change is None:
        judged = [r.evaluation for r in history if r.evaluation]
        if not judged:
            return "No round was judged on unseen data."
        return f"Only round {judged[0].round} was judged: policy loss {fixed(judged[0].policy_loss, 3)} on unseen data."
    text = (
        f"Policy loss on unseen data: {fixed(change.first, 3)} in round {change.first_round}, "
        f"{fixed(change.last, 3)} in round {change.last_round}"
    )
    if not change.comparable:
        return f"{text}, measured in different ways."
    way = "down" if change.fall >= 0 else "up"
    text += f"; {way} by {fixed(abs(change.fall), 3)}"
    if change.interval is None:
        return f"{text}, without an interval: a set has a single episode."
    low, high = change.interval if change.fall >= 0 else (-change.interval[1], -change.interval[0])
    return f"{text} (95 % interval {fixed(low, 3)} to {fixed(high, 3)}, paired over episodes)."
