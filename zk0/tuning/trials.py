"""Search space, objective and trial results of a hyperparameter search."""

from collections.abc import Mapping, Sequence
from math import fsum
from typing import Literal, Self

from pydantic import Field, model_validator

from zk0.errors import EvaluationError
from zk0.records import Record, RoundRecord
from zk0.settings.session import Session

Objective = Literal["held_out", "unseen"]
TrialOutcome = Literal["finished", "pruned", "failed"]
SettingValue = bool | int | float | str


class Dimension(Record):
    """Values of one setting: a range, or choices."""

    low: int | float | None = Field(default=None, description="minimum; integers if both ends are integers")
    high: int | float | None = Field(default=None, description="maximum")
    log: bool = Field(default=False, description="sample on a logarithmic scale")
    choices: tuple[SettingValue, ...] = Field(default=(), description="values to choose from, instead of a range")

    @model_validator(mode="after")
    def _range_or_choices(self) -> Self:
        if (self.low is None) != (self.high is None) or (self.low is None) == (not self.choices):
            raise ValueError("expected either low and high, or choices")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        if self.log and (self.low is None or self.low <= 0):
            raise ValueError("log needs a range above 0")
        return self


SearchSpace = Mapping[str, Dimension]
"""Dimensions by dotted name of the setting."""


class TrialResult(Record):
    """Settings and outcome of one trial."""

    number: int
    settings: dict[str, SettingValue]
    outcome: TrialOutcome
    loss: float | None
    """Of the last evaluated round; None for a trial that failed before an evaluation."""
    rounds: int
    seconds: float
    reason: str = ""


def default_space(session: Session) -> dict[str, Dimension]:
    """Default search space around the session's settings: learning rate, mu, local steps or epochs, and scheduler."""
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


def objective_loss(record: RoundRecord, objective: Objective) -> float | None:
    """Loss that the search minimizes: mean over the clients' held-out episodes, or over the unseen sets.

    A model that is selected on the unseen sets cannot be evaluated on them without bias. None if the round was not
    evaluated.

    Raises:
        EvaluationError: the clients evaluated in this round, but there is no result.
    """
    if objective == "unseen":
        return record.evaluation.policy_loss if record.evaluation else None
    if record.client_evaluation is None:
        return None
    losses = [s.score.policy_loss for s in record.client_evaluation.scores]
    if not losses:
        raise EvaluationError(f"round {record.round}: no client evaluated the model; see the refusals in the ledger")
    return fsum(losses) / len(losses)


def best_trial(rows: Sequence[TrialResult]) -> TrialResult | None:
    """The finished trial with the lowest loss, the earliest of several; None if no trial has finished."""
    finished = [r for r in rows if r.outcome == "finished" and r.loss is not None]
    return min(finished, key=lambda r: (r.loss, r.number), default=None)
