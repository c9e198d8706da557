"""Benchmark of the federated model against baselines, paired over training seeds and over episodes or attempts.

Baselines: the policy that all training starts from (base), each client's local-only training, and centralized training
on all clients' data in one place.
"""

from collections.abc import Collection, Iterator, Sequence
from math import fsum
from typing import Literal

from zk0.errors import BenchmarkError, EvaluationError
from zk0.records import EpisodeScore, Record, RoundRecord
from zk0.stats.intervals import crossed_interval, wilson_interval
from zk0.stats.model_comparison import METRICS, MetricName, ModelResults
from zk0.storage.redaction import public_name

ModelKind = Literal["base", "local-only", "federated", "centralized"]
EvaluatedOn = Literal["held out", "own", "others", "unseen"]
"""held out: episodes (tasks) that clients hold out (brought); own, others: those of the client that trained local-only,
and those of the other clients; unseen: datasets and tasks that no client has."""
COMPARED_ON: dict[ModelKind, tuple[EvaluatedOn, ...]] = {
    "base": ("held out", "unseen"),
    "local-only": ("own", "others", "unseen"),
    "centralized": ("held out", "unseen"),
}
"""On which episodes and tasks each baseline is compared with the federated model."""
CENTRALIZED: ModelKind = "centralized"
CENTRALIZED_CLIENT = "centralised"
"""Client name of centralized training in its round plans. It enters every round seed, so its spelling is fixed."""
SHARED_TASK = "several clients"
"""Owner of a task that more than one client brought."""
PairedUnit = tuple[str | None, str, int]
"""Owner (None: unseen by all clients), dataset or task, episode or seed of the attempt."""


class TrainingBudget(Record):
    """Optimizer steps and samples of one training."""

    optimizer_steps: int
    """For a federation, the sum over all clients."""
    samples: int
    """Frames of all batches; a frame counts once per batch that holds it."""


class BenchmarkModel(Record):
    """One model under one training seed, with its results."""

    kind: ModelKind
    client: str | None = None
    """The client of local-only training."""
    seed: int
    budget: TrainingBudget
    results: ModelResults

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"{self.client} (local-only)" if self.client else self.kind


class BaselineDifference(Record):
    """The federated model against one baseline: means over the same units and seeds, and their difference."""

    metric: MetricName
    baseline: ModelKind
    evaluated_on: EvaluatedOn
    seeds: int
    units: int
    """Episodes or attempts, each under every seed."""
    baseline_value: float
    federated_value: float
    change: float
    """federated_value - baseline_value."""
    interval: tuple[float, float] | None
    """95 % interval over seeds and units (`crossed_mean`); None with a single seed and unit, or if all differences are
    equal."""

    @property
    def percent(self) -> float | None:
        """The change in percent of the baseline's value; None if that is zero."""
        return 100 * self.change / self.baseline_value if self.baseline_value else None


class ModelAverage(Record):
    """One model on one dataset or task, averaged over all seeds."""

    model: str
    metric: MetricName
    subject: str
    """The dataset, task, or client whose held-out episodes these are."""
    seeds: int
    value: float
    interval: tuple[float, float] | None = None
    """For a success rate: Wilson's 95 % interval over the attempts of all seeds."""
    successes: int | None = None
    attempts: int | None = None


def training_budget(history: Sequence[RoundRecord], batch_size: int, client: str | None = None) -> TrainingBudget:
    """Optimizer steps and samples in the rounds of a federation.

    The last batch of a pass over a client's frames is smaller if `batch_size` does not divide their number.

    Args:
        history: of the federation.
        batch_size: frames per optimizer step.
        client: count this client only; None: all clients.

    Raises:
        BenchmarkError: the federation used secure aggregation, which records no steps of single clients.
    """
    if sums := [record.round for record in history for update in record.updates if update.summed]:
        raise BenchmarkError(
            f"round {sums[0]} has a sum of updates, and no optimizer steps of single clients; expected a session "
            "without federation.secure"
        )
    updates = [u for record in history for u in record.updates if client in (None, u.client)]
    return TrainingBudget(
        optimizer_steps=sum(u.metrics.local_steps for u in updates),
        samples=sum(samples_seen(u.metrics.local_steps, u.examples, batch_size) for u in updates),
    )


def samples_seen(steps: int, frames: int, batch_size: int) -> int:
    """Number of frames in `steps` batches that pass repeatedly over `frames` frames.

    >>> samples_seen(steps=5, frames=10, batch_size=4)  # batches of 4 4 2, 4 4
    18
    """
    passes, rest = divmod(steps, -(-frames // batch_size))
    return passes * frames + min(rest * batch_size, frames)


def baseline_differences(
    models: Sequence[BenchmarkModel], shared_tasks: Collection[str] = ()
) -> tuple[BaselineDifference, ...]:
    """All differences between the federated model and its baselines.

    Args:
        models: of all training seeds.
        shared_tasks: the tasks that more than one client brought.

    Raises:
        EvaluationError: the models of one seed, or two seeds, were evaluated on different episodes or attempts.
    """
    return tuple(
        found
        for metric in METRICS
        for baseline, groups in COMPARED_ON.items()
        for evaluated_on in groups
        if (found := _difference(models, shared_tasks, (metric, baseline, evaluated_on))) is not None
    )


def model_averages(models: Sequence[BenchmarkModel]) -> tuple[ModelAverage, ...]:
    """Every model on every dataset and task, averaged over its seeds; models in the order of their first mention."""
    found: list[ModelAverage] = []
    for name in dict.fromkeys(m.name for m in models):
        group = [m for m in models if m.name == name]
        for metric in METRICS:
            found += _averages(name, metric, [values_by_unit(m.results, metric) for m in group])
    return tuple(found)


def _averages(name: str, metric: MetricName, tables: Sequence[dict[PairedUnit, float]]) -> Iterator[ModelAverage]:
    """`tables` hold the values of each seed."""
    tables = [table for table in tables if table]
    for owner, source in dict.fromkeys((owner, source) for table in tables for owner, source, _ in table):
        rows = [[v for (o, s, _), v in table.items() if (o, s) == (owner, source)] for table in tables]
        values = [value for row in rows for value in row]
        subject = source if metric == "success_rate" else f"held out by {owner}" if owner else public_name(source)
        average = ModelAverage(
            model=name, metric=metric, subject=subject, seeds=len(rows), value=fsum(values) / len(values)
        )
        if metric == "success_rate":
            successes = round(fsum(values))
            ends = wilson_interval(successes, len(values))
            average = average.model_copy(update={"interval": ends, "successes": successes, "attempts": len(values)})
        yield average


def _difference(
    models: Sequence[BenchmarkModel],
    shared_tasks: Collection[str],
    selection: tuple[MetricName, ModelKind, EvaluatedOn],
) -> BaselineDifference | None:
    metric, baseline, evaluated_on = selection
    rows: list[dict[PairedUnit, tuple[float, float]]] = []
    for seed in dict.fromkeys(m.seed for m in models):
        of_seed = [(m, values_by_unit(m.results, metric, shared_tasks)) for m in models if m.seed == seed]
        federated = next(values for model, values in of_seed if model.kind == "federated")
        baselines = [(model, values) for model, values in of_seed if model.kind == baseline]
        rows.append(_paired_values(federated, baselines, evaluated_on, metric))
    if not all(rows):
        return None
    if any(row.keys() != rows[0].keys() for row in rows):
        raise EvaluationError(f"{metric}: the seeds were not evaluated on the same episodes and attempts")
    differences = [[after - before for before, after in row.values()] for row in rows]
    change, interval = crossed_interval(differences)
    sides = [[pair[side] for row in rows for pair in row.values()] for side in (0, 1)]
    return BaselineDifference(
        metric=metric,
        baseline=baseline,
        evaluated_on=evaluated_on,
        seeds=len(rows),
        units=len(rows[0]),
        baseline_value=fsum(sides[0]) / len(sides[0]),
        federated_value=fsum(sides[1]) / len(sides[1]),
        change=change,
        interval=interval,
    )


def _paired_values(
    federated: dict[PairedUnit, float],
    baselines: Sequence[tuple[BenchmarkModel, dict[PairedUnit, float]]],
    evaluated_on: EvaluatedOn,
    metric: str,
) -> dict[PairedUnit, tuple[float, float]]:
    """Values of each unit: of the baseline (mean over the models that are compared on this unit), and federated."""
    found: dict[PairedUnit, tuple[float, float]] = {}
    baselines = [(model, values) for model, values in baselines if values]
    for model, values in baselines:
        if values.keys() != federated.keys():
            raise EvaluationError(
                f"{metric}: {model.name} (seed {model.seed}) and the federated model were evaluated on different "
                "episodes or attempts; remove the baseline's folder and run again"
            )
    for unit, value in federated.items():
        of_unit = [values[unit] for model, values in baselines if _is_compared(evaluated_on, unit[0], model.client)]
        if of_unit:
            found[unit] = fsum(of_unit) / len(of_unit), value
    return found


def _is_compared(evaluated_on: EvaluatedOn, owner: str | None, client: str | None) -> bool:
    """Whether the baseline of `client` is compared on units of `owner`."""
    if evaluated_on == "unseen" or owner is None:
        return evaluated_on == "unseen" and owner is None
    if evaluated_on == "held out":
        return True
    return owner != SHARED_TASK and (owner == client) == (evaluated_on == "own")


def values_by_unit(
    results: ModelResults, metric: MetricName, shared_tasks: Collection[str] = ()
) -> dict[PairedUnit, float]:
    """Return the value of every episode or attempt of one model; without a result of this metric, none.

    Args:
        results: of the model.
        metric: which value.
        shared_tasks: tasks that more than one client brought.
    """
    if metric == "success_rate":
        return {
            (SHARED_TASK if r.task in shared_tasks else r.client, r.task, r.seed): float(r.success)
            for r in results.rollouts
        }
    held_out = results.held_out.scores if results.held_out else ()
    unseen = results.unseen.sets if results.unseen else ()
    found = {(s.client, s.score.dataset, e.episode): _value(e, metric) for s in held_out for e in s.score.episodes}
    return found | {(None, s.dataset, e.episode): _value(e, metric) for s in unseen for e in s.episodes}


def _value(episode: EpisodeScore, metric: MetricName) -> float:
    return episode.policy_loss if metric == "policy_loss" else episode.action_error_degrees
