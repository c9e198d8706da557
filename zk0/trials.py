"""What a hyperparameter search looks for, and what its trials came to."""

from collections.abc import Mapping, Sequence
from math import fsum
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from zk0.errors import EvaluationError
from zk0.records import Record, RoundRecord
from zk0.session import Session

Objective = Literal["held_out", "unseen"]
Outcome = Literal["finished", "pruned", "failed"]
Value = bool | int | float | str


class Dimension(Record):
    """The values that one setting may take: a range, or choices."""

    low: int | float | None = Field(
        default=None, description="smallest value; whole numbers at both ends give integers"
    )
    high: int | float | None = None
    log: bool = Field(default=False, description="equal ratios are equally likely, not equal differences")
    choices: tuple[Value, ...] = ()

    @model_validator(mode="after")
    def _range_or_choices(self) -> Self:
        if (self.low is None) != (self.high is None) or (self.low is None) == (not self.choices):
            raise ValueError("expected either low and high, or choices")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        if self.log and (self.low is None or self.low <= 0):
            raise ValueError("log needs a range above 0")
        return self


Space = Mapping[str, Dimension]
"""By dotted name of a setting."""


class TrialRow(Record):
    """One trial: what was set, and how good it was."""

    number: int
    settings: dict[str, Value]
    outcome: Outcome
    loss: float | None
    """Of the last round that was judged; None for a trial that failed before one was."""
    rounds: int
    seconds: float
    reason: str = ""


def usual_space(session: Session) -> dict[str, Dimension]:
    """Learning rate, mu, length of a round and scheduler, around what the session asks for."""
    training = session.training
    if training.local_steps is not None:
        name, length = "training.local_steps", training.local_steps
    else:
        name, length = "training.local_epochs", training.local_epochs or 1
    return {
        "training.lr": Dimension(low=training.lr / 30, high=training.lr * 30, log=True),
        "training.proximal_mu": Dimension(low=1e-4, high=1.0, log=True),
        name: Dimension(low=max(length // 4, 1), high=length * 4, log=True),
        "scheduler.type": Dimension(choices=("cosine", "cosine_warm_restarts", "reduce_on_plateau")),
    }


def loss_of(record: RoundRecord, objective: Objective) -> float | None:
    """What a search makes small: the mean over clients on what they hold out, or the mean over unseen sets.

    Choosing by the unseen sets makes them part of training: they can no longer judge what was chosen.

    Raises:
        EvaluationError: no client could judge in a round in which clients do.
    """
    if objective == "unseen":
        return record.evaluation.policy_loss if record.evaluation else None
    if record.client_evaluation is None:
        return None
    losses = [s.score.policy_loss for s in record.client_evaluation.scores]
    if not losses:
        raise EvaluationError(f"round {record.round}: no client could judge; see the ledger's refusals")
    return fsum(losses) / len(losses)


def best_of(rows: Sequence[TrialRow]) -> TrialRow | None:
    """The finished trial with the smallest loss; the earlier one of two equals."""
    finished = [r for r in rows if r.outcome == "finished" and r.loss is not None]
    return min(finished, key=lambda r: (r.loss, r.number), default=None)


def space_from(values: Mapping[str, Any]) -> dict[str, Dimension]:
    """A space as it stands in JSON."""
    return {name: Dimension.model_validate(dimension) for name, dimension in values.items()}
