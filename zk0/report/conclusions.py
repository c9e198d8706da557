"""Conclusions about a session in sentences, each with its 95 % interval."""

from collections.abc import Sequence
from typing import Literal

from zk0.records import Record, Rollout, RoundRecord
from zk0.report.metrics import sorted_by_round
from zk0.report.number_format import fixed, percent
from zk0.report.tables.rollout_tables import paired_successes, rollouts_of_round, shown_rounds
from zk0.rules.selection import Selection, select_round
from zk0.settings.session import Session
from zk0.stats.intervals import comparable, paired_improvement, rate_difference, wilson_interval

ConclusionOutcome = Literal["improved", "worse", "inconclusive"]


class LossChange(Record):
    """Change of the policy loss on unseen data from the first to the last evaluated round."""

    first_round: int
    last_round: int
    first_loss: float
    last_loss: float
    improvement: float
    """first_loss - last_loss."""
    interval: tuple[float, float] | None
    """95 % interval of the improvement, paired over episodes; None where a set has a single episode."""
    comparable: bool
    """Whether both evaluations used the same frames, normalization, seed and draws."""


class Conclusions(Record):
    """Headline and sentences at the top of a report."""

    outcome: ConclusionOutcome
    headline: str
    sentences: tuple[str, ...]


def loss_change(history: Sequence[RoundRecord]) -> LossChange | None:
    """Change of the loss from the first to the last evaluated round; None with fewer than two evaluations."""
    evaluations = [r.evaluation for r in sorted_by_round(history) if r.evaluation]
    if len(evaluations) < 2:
        return None
    first, last = evaluations[0], evaluations[-1]
    is_comparable = comparable(first, last)
    return LossChange(
        first_round=first.round,
        last_round=last.round,
        first_loss=first.policy_loss,
        last_loss=last.policy_loss,
        improvement=first.policy_loss - last.policy_loss,
        interval=paired_improvement(first, last).interval if is_comparable else None,
        comparable=is_comparable,
    )


def session_conclusions(
    history: Sequence[RoundRecord], rollouts: Sequence[Rollout], selection: Selection | None = None
) -> Conclusions:
    """How many attempts succeed, now and before training, and by how much the loss on unseen data changed.

    Where the first and the last model made the same attempts, they decide the outcome, and begin the headline. It ends
    with the best round, if several rounds of training were evaluated.

    Args:
        history: the finished rounds.
        rollouts: closed-loop attempts.
        selection: the round of the session's policy; None: left out.
    """
    change = loss_change(history)
    outcome, headline = _headline(change)
    if attempts := _success_headline(rollouts):
        outcome, headline = attempts[0], f"{attempts[1]} {headline}"
    sentences = [_loss_sentence(change, history), *([success_sentence(rollouts)] if rollouts else [])]
    if selection is not None:
        headline += _best_round_sentence(history, selection)
        sentences.append(f"The policy of this session is that of round {selection.round} ({selection.reason}).")
    return Conclusions(outcome=outcome, headline=headline, sentences=tuple(sentences))


def conclusions_with_policy(
    session: Session, history: Sequence[RoundRecord], rollouts: Sequence[Rollout]
) -> Conclusions:
    """The conclusions of a session, and which round's model is its policy; without a finished round, none is."""
    return session_conclusions(history, rollouts, select_round(session, history, rollouts) if history else None)


def success_sentence(rollouts: Sequence[Rollout]) -> str:
    """Closed-loop success rate of the last model with its interval, and that of the first model.

    >>> attempt = Rollout(round=3, checkpoint="", task="lift", conditions_digest="", seed=1, success=True, steps=9,
    ...     duration_seconds=0.9, fps=10, smoothness=None)
    >>> success_sentence([attempt])
    'In closed loop, 1 of 1 attempts succeeded (100 %; 95 % Wilson interval 21 % to 100 %).'
    """
    if not rollouts:
        return "No closed-loop attempt was made."
    shown = shown_rounds(rollouts)
    last, first = rollouts_of_round(rollouts, shown[-1]), rollouts_of_round(rollouts, shown[0])
    successes, attempts = sum(r.success for r in last), len(last)
    low, high = wilson_interval(successes, attempts)
    rate = f"{percent(successes / attempts)}; 95 % Wilson interval {percent(low)} to {percent(high)}"
    before = f", {sum(r.success for r in first)} of {len(first)} in round {shown[0]}" if len(shown) > 1 else ""
    return f"In closed loop, {successes} of {attempts} attempts succeeded ({rate}){before}."


def _success_headline(rollouts: Sequence[Rollout]) -> tuple[ConclusionOutcome, str] | None:
    """Outcome and sentence about the attempts of the first and the last model; None if these differ."""
    shown = shown_rounds(rollouts) if rollouts else ()
    if len(shown) < 2:
        return None
    first, last = (rollouts_of_round(rollouts, number) for number in (shown[0], shown[-1]))
    pairs = paired_successes(first, last)
    if not len(pairs) == len(first) == len(last):
        return None
    before, now = zip(*pairs, strict=True)
    counts = f"{sum(now)} of {len(now)}, before {sum(before)}"
    _, (low, _) = rate_difference(before, now)
    if sum(now) < sum(before):
        return "worse", f"Fewer attempts succeeded than before training: {counts}."
    if low > 0:
        return "improved", f"More attempts succeeded than before training: {counts}."
    return "inconclusive", f"The number of successful attempts did not change significantly: {counts}."


def _best_round_sentence(history: Sequence[RoundRecord], selection: Selection) -> str:
    """Which round was the best; empty with fewer than two evaluated rounds of training."""
    evaluated = [record.round for record in history if record.round and record.evaluation]
    return f" The best round was {selection.best} of {max(evaluated)}." if len(evaluated) > 1 else ""


def _headline(change: LossChange | None) -> tuple[ConclusionOutcome, str]:
    if change is None:
        return "inconclusive", "Fewer than two rounds were evaluated, so a change of the loss is not known."
    if not change.comparable:
        return "inconclusive", "The losses of the first and the last round are not comparable."
    relative = f" by {percent(abs(change.improvement) / change.first_loss)}" if change.first_loss > 0 else ""
    if change.interval is None:
        verb = "fell" if change.improvement > 0 else "rose" if change.improvement < 0 else "did not change"
        amount = relative if change.improvement else ""
        return "inconclusive", f"The loss on unseen data {verb}{amount}; its interval is not known."
    low, high = change.interval
    if low > 0:
        return "improved", f"The loss on unseen data fell{relative}."
    if high < 0:
        return "worse", f"The loss on unseen data rose{relative}."
    if change.improvement < 0:
        return "inconclusive", f"The loss on unseen data rose{relative}, not significantly."
    return "inconclusive", "The loss on unseen data did not change significantly."


def _loss_sentence(change: LossChange | None, history: Sequence[RoundRecord]) -> str:
    if change is None:
        evaluations = [r.evaluation for r in history if r.evaluation]
        if not evaluations:
            return "No round was evaluated on unseen data."
        loss = fixed(evaluations[0].policy_loss, 3)
        return f"Only round {evaluations[0].round} was evaluated: policy loss {loss} on unseen data."
    text = (
        f"Policy loss on unseen data: {fixed(change.first_loss, 3)} in round {change.first_round}, "
        f"{fixed(change.last_loss, 3)} in round {change.last_round}"
    )
    if not change.comparable:
        return f"{text}, evaluated with different settings."
    direction = "down" if change.improvement >= 0 else "up"
    text += f"; {direction} by {fixed(abs(change.improvement), 3)}"
    if change.interval is None:
        return f"{text}, without an interval: a set has a single episode."
    low, high = change.interval if change.improvement >= 0 else (-change.interval[1], -change.interval[0])
    return f"{text} (95 % interval {fixed(low, 3)} to {fixed(high, 3)}, paired over episodes)."
