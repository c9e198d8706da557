"""Release rule: whether the checkpoint of a round may be published, and the record of the decision and its outcome."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from zk0.records import Evaluation, Record, RoundRecord
from zk0.settings.publish_settings import PublishSettings
from zk0.stats.intervals import Estimate, comparable, paired_improvement
from zk0.storage.atomic import atomic_write_text

ReleaseOutcome = Literal["refused", "allowed", "pushed", "failed"]


class Release(Record):
    """The decision about the checkpoint of one round, its evidence, and its outcome (release.json)."""

    outcome: ReleaseOutcome
    """`allowed`: not pushed yet. `failed`: the push failed; it may be repeated."""
    reason: str
    """One sentence."""
    round: int = Field(ge=0)
    repo_id: str | None
    private: bool
    improvement: Estimate | None = None
    """Decrease of the policy loss since round 0, paired over episodes; None where it is not known."""
    force_reason: str | None = None
    """Reason for a push by hand that the rule refuses."""
    revision: str | None = None
    """Tag on the Hub."""
    files: dict[str, str] = {}
    """SHA-256 of each file that was pushed."""
    commit: str | None = None
    url: str | None = None

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read the record from release.json; None if there is none."""
        return cls.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else None

    def write(self, path: Path) -> None:
        """Write the record to release.json atomically."""
        atomic_write_text(path, self.model_dump_json(indent=2))

    def summary(self) -> str:
        """Outcome and reason in one line.

        >>> Release(outcome="refused", reason="3 rounds ran", round=3, repo_id="lab/arm", private=True).summary()
        'not pushed: 3 rounds ran'
        """
        where = f"{'private' if self.private else 'public'} {self.repo_id}"
        by_hand = "" if self.force_reason is None else f"by hand, because: {self.force_reason}; release rule: "
        return {
            "refused": f"not pushed: {self.reason}",
            "allowed": f"may be pushed to {where}: {self.reason}",
            "failed": f"could not be pushed to {where}: {self.reason}",
            "pushed": f"pushed to {where} as {self.revision}: {by_hand}{self.reason}",
        }[self.outcome]

    def with_outcome(self, outcome: ReleaseOutcome, reason: str) -> Self:
        """The same record with another outcome and reason."""
        return self.model_copy(update={"outcome": outcome, "reason": reason})


def decide_release(
    publish: PublishSettings, history: Sequence[RoundRecord], number: int, selected: str | None = None
) -> Release:
    """Decide whether the model of round `number` may be pushed.

    It may if a repository is set, at least `publish.min_rounds` rounds ran, and the model is significantly better than
    that of round 0: the 95 % interval of the decrease of the policy loss on the evaluation sets, paired over episodes,
    lies above zero.

    Args:
        publish: the settings.
        history: the finished rounds.
        number: the round of the model.
        selected: why the session's policy is of this round; then all rounds count, not only those before it.
    """
    ran = history[-1].round if selected and history else number
    improvement, objection = _improvement(history, number)
    objections = [
        *(["publish.repo_id is not set"] if publish.repo_id is None else []),
        *([f"{_rounds(ran)} ran, expected at least {publish.min_rounds}"] if ran < publish.min_rounds else []),
        *([objection] if objection else []),
    ]
    outcome: ReleaseOutcome
    if objections or improvement is None:
        outcome, reason = "refused", "; ".join(objections)
    else:
        outcome, reason = "allowed", f"{_rounds(ran)} ran, and the loss on unseen data {_change(improvement)}"
    reason = f"round {number} ({selected}): {reason}" if selected else reason
    return Release(
        outcome=outcome,
        reason=reason,
        round=number,
        repo_id=publish.repo_id,
        private=publish.private,
        improvement=improvement,
    )


def _improvement(history: Sequence[RoundRecord], number: int) -> tuple[Estimate | None, str | None]:
    """The decrease of the loss since round 0, and the objection to a release that it raises."""
    base, model = _evaluation(history, 0), _evaluation(history, number)
    if number == 0:
        return None, "round 0 is the base policy itself"
    if base is None or model is None:
        return None, f"round {0 if base is None else number} was not evaluated on unseen data"
    if not comparable(base, model):
        return None, f"the evaluations of rounds 0 and {number} are not comparable"
    improvement = paired_improvement(base, model)
    change = f"the loss on unseen data {_change(improvement)}"
    if improvement.interval is None:
        return improvement, f"{change}; expected two episodes or more in every set"
    return improvement, None if improvement.interval[0] > 0 else f"{change}: not significantly better"


def _evaluation(history: Sequence[RoundRecord], number: int) -> Evaluation | None:
    return next((r.evaluation for r in history if r.round == number), None)


def _change(improvement: Estimate) -> str:
    """The change of the loss since round 0, in words.

    >>> _change(Estimate(value=0.25, se=0.01, dof=4)), _change(Estimate(value=-0.25, se=None, dof=None))
    ('fell by 0.25 since round 0 (95 % interval 0.222 to 0.278)', 'rose by 0.25 since round 0 (no interval)')
    """
    verb, sign = ("fell", 1) if improvement.value >= 0 else ("rose", -1)
    ends = sorted(sign * end for end in improvement.interval) if improvement.interval else []
    interval = f"95 % interval {ends[0]:.3g} to {ends[1]:.3g}" if ends else "no interval"
    return f"{verb} by {sign * improvement.value:.3g} since round 0 ({interval})"


def _rounds(number: int) -> str:
    return f"{number} round{'' if number == 1 else 's'}"
