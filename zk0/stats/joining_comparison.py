"""The record of a joining report, and the comparisons in it: four models on one client's held-out episodes."""

from collections.abc import Mapping

from pydantic import Field

from zk0.records import MAX_INDEX, Record, SetScore, Text
from zk0.stats.intervals import Estimate, set_improvement, weighted_mean

JOINING_MODELS = ("base", "local_only", "federated", "fine_tuned")
"""Names of the models that a joining report compares."""
_PAIRS = (("base", "federated"), ("local_only", "federated"), ("local_only", "fine_tuned"), ("federated", "fine_tuned"))


class JoiningReport(Record):
    """What joining has brought one client; losses are means over its held-out episodes, weighted by their actions."""

    client: Text
    dataset: Text
    rounds: int = Field(ge=0, le=MAX_INDEX)
    models: dict[Text, SetScore] = Field(max_length=16)
    losses: dict[Text, Estimate] = Field(max_length=16)
    improvements: dict[Text, Estimate] = Field(max_length=16)
    """Paired over episodes; `local_only-federated` is the loss of `local_only` minus the loss of `federated`."""


def losses_of(models: Mapping[str, SetScore]) -> dict[str, Estimate]:
    """Return the mean loss of each model over its episodes, weighted by their actions."""
    return {
        name: weighted_mean([e.policy_loss for e in score.episodes], [e.actions for e in score.episodes])
        for name, score in models.items()
    }


def improvements_of(models: Mapping[str, SetScore]) -> dict[str, Estimate]:
    """Return the paired differences of losses that a joining report has, by "BEFORE-AFTER".

    Raises:
        ValueError: two models were not evaluated on the same frames.
    """
    return {f"{before}-{after}": set_improvement(models[before], models[after]) for before, after in _PAIRS}
