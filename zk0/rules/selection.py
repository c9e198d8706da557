"""Which round's model is the policy of a session, and whether the session ends before its last round."""

from collections.abc import Mapping, Sequence

from pydantic import Field

from zk0.records import Record, Rollout, RoundRecord
from zk0.settings.session import Session


class Selection(Record):
    """The round whose model is the policy of the session."""

    round: int = Field(ge=0)
    best: int = Field(ge=0)
    """The best round: equal to `round` with `selection = "best"`."""
    reason: str


def select_round(session: Session, history: Sequence[RoundRecord], rollouts: Sequence[Rollout]) -> Selection:
    """Return the round of the session's policy, the best round, and why.

    The best round is the one with the most successful attempts, if two or more rounds of training made the same
    attempts, else the one with the lowest policy loss on unseen data. Of equals, it is the first. Round 0, the start
    policy, is not chosen.

    Args:
        session: its setting `selection` decides between the best and the last round.
        history: the finished rounds, round 0 included.
        rollouts: closed-loop attempts of all rounds.
    """
    last = history[-1].round
    best, why = _best_round(history, rollouts)
    if session.selection == "best":
        return Selection(round=best, best=best, reason=f"selection is best: {why}")
    beside = "it is the best round, too" if best == last else f"the best one is round {best}: {why}"
    return Selection(round=last, best=best, reason=f"selection is last; {beside}")


def final_round(session: Session, history: Sequence[RoundRecord]) -> int:
    """Return the last round of the session: `rounds`, or less if its loss stopped falling (`patience`).

    With patience N the session ends after N evaluated rounds in a row without a lower loss on unseen data than all
    rounds before them, round 0 included.
    """
    lowest, waited = float("inf"), 0
    for record in history if session.patience else ():
        if record.evaluation is None:
            continue
        waited = 0 if record.evaluation.policy_loss < lowest else waited + 1
        lowest = min(lowest, record.evaluation.policy_loss)
        if waited >= session.patience:
            return record.round
    return session.rounds


def _best_round(history: Sequence[RoundRecord], rollouts: Sequence[Rollout]) -> tuple[int, str]:
    """The best round of training, and the reason; the last round if none was evaluated."""
    losses = {r.round: r.evaluation.policy_loss for r in history if r.round and r.evaluation}
    successes = _comparable_successes(rollouts)
    if len(set(successes.values())) > 1:
        best = min(successes, key=lambda n: (-successes[n], losses.get(n, float("inf")), n))
        return best, f"most successful attempts ({successes[best]}; last round {successes[max(successes)]})"
    if not losses:
        return history[-1].round, "no round of training was evaluated"
    best = min(losses, key=lambda n: (losses[n], n))
    return best, f"lowest policy loss on unseen data ({losses[best]:.4g}; last round {losses[max(losses)]:.4g})"


def _comparable_successes(rollouts: Sequence[Rollout]) -> Mapping[int, int]:
    """Successes by round of training, of the rounds that made the same attempts as the last one."""
    attempts: dict[int, set[tuple[str, int, str]]] = {}
    successes: dict[int, int] = {}
    for one in rollouts:
        if one.round:
            attempts.setdefault(one.round, set()).add((one.task, one.seed, one.conditions_digest))
            successes[one.round] = successes.get(one.round, 0) + one.success
    wanted = attempts[max(attempts)] if attempts else set()
    return {number: count for number, count in successes.items() if attempts[number] == wanted}
