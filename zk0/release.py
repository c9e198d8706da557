"""Whether a model leaves the house, and why: the rule, and the record of what came of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from zk0.folder import write_whole
from zk0.interval import Estimate, measured_alike, paired_fall
from zk0.records import Evaluation, Record, RoundRecord
from zk0.session import PublishSettings

Outcome = Literal["refused", "allowed", "pushed", "failed"]


class Release(Record):
    """What was decided about the model of one round, on what evidence, and what came of it."""

    outcome: Outcome
    """`allowed`: not pushed yet. `failed`: the Hub did not take it; it may be pushed again."""
    reason: str
    """One sentence for people."""
    round: int = Field(ge=0)
    repo_id: str | None
    private: bool
    fall: Estimate | None = None
    """Of the policy loss since round 0, paired over episodes; None where it is not known."""
    forced: str | None = None
    """Why someone pushed it by hand against the rule."""
    revision: str | None = None
    """The tag on the Hub."""
    commit: str | None = None
    url: str | None = None

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """What was written down; None where nothing was."""
        return cls.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else None

    def keep(self, path: Path) -> None:
        """Write it down, whole or not at all."""
        write_whole(path, self.model_dump_json(indent=2))

    def told(self) -> str:
        """Outcome and reason in one line.

        >>> Release(outcome="refused", reason="3 rounds ran", round=3, repo_id="lab/arm", private=True).told()
        'not pushed: 3 rounds ran'
        """
        where = f"{'private' if self.private else 'public'} {self.repo_id}"
        by_hand = "" if self.forced is None else f"by hand, because: {self.forced}; the rule says: "
        return {
            "refused": f"not pushed: {self.reason}",
            "allowed": f"may be pushed to {where}: {self.reason}",
            "failed": f"could not be pushed to {where}: {self.reason}",
            "pushed": f"pushed to {where} as {self.revision}: {by_hand}{self.reason}",
        }[self.outcome]

    def now(self, outcome: Outcome, reason: str) -> Self:
        """The same evidence with another ending."""
        return self.model_copy(update={"outcome": outcome, "reason": reason})


def decide_release(publish: PublishSettings, history: Sequence[RoundRecord], number: int) -> Release:
    """May the model of round `number` be pushed: asked for, trained for long enough, and surely better than its base.

    Better: the policy loss on the sets that judge is below that of round 0, and the 95 % interval of the fall, paired
    over episodes, lies above zero.
    """
    fall, why_not = _fall(history, number)
    against = [
        *(["publish.repo_id is not set"] if publish.repo_id is None else []),
        *([f"{_rounds(number)} ran, expected at least {publish.min_rounds}"] if number < publish.min_rounds else []),
        *([why_not] if why_not else []),
    ]
    if against or fall is None:
        outcome, reason = "refused", "; ".join(against)
    else:
        outcome, reason = "allowed", f"{_rounds(number)} ran, and the loss on unseen data {_moved(fall)}"
    return Release(
        outcome=outcome, reason=reason, round=number, repo_id=publish.repo_id, private=publish.private, fall=fall
    )


def _fall(history: Sequence[RoundRecord], number: int) -> tuple[Estimate | None, str | None]:
    """The fall of the loss since round 0, and what speaks against a release in it."""
    base, model = _judged(history, 0), _judged(history, number)
    if number == 0:
        return None, "round 0 is the base itself"
    if base is None or model is None:
        return None, f"round {0 if base is None else number} was not judged on unseen data"
    if not measured_alike(base, model):
        return None, f"rounds 0 and {number} were judged in different ways"
    fall = paired_fall(base, model)
    if fall.interval is None:
        return fall, f"the loss on unseen data {_moved(fall)}; expected two episodes or more in every set"
    return fall, None if fall.interval[0] > 0 else f"the loss on unseen data {_moved(fall)}: not surely better"


def _judged(history: Sequence[RoundRecord], number: int) -> Evaluation | None:
    return next((r.evaluation for r in history if r.round == number), None)


def _moved(fall: Estimate) -> str:
    """How the loss moved since round 0, in words.

    >>> _moved(Estimate(value=0.25, se=0.01, dof=4)), _moved(Estimate(value=-0.25, se=None, dof=None))
    ('fell by 0.25 since round 0 (95 % interval 0.222 to 0.278)', 'rose by 0.25 since round 0 (no interval is known)')
    """
    how, sign = ("fell", 1) if fall.value >= 0 else ("rose", -1)
    ends = sorted(sign * end for end in fall.interval) if fall.interval else []
    known = f"95 % interval {ends[0]:.3g} to {ends[1]:.3g}" if ends else "no interval is known"
    return f"{how} by {sign * fall.value:.3g} since round 0 ({known})"


def _rounds(number: int) -> str:
    return f"{number} round{'' if number == 1 else 's'}"
