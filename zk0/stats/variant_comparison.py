"""Comparison of sessions that differ in a few settings, paired over training seeds and over episodes or attempts."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from zk0.errors import EvaluationError, SettingsError
from zk0.records import Record
from zk0.stats.baseline_comparison import PairedUnit, values_by_unit
from zk0.stats.intervals import crossed_interval
from zk0.stats.model_comparison import METRICS, MetricName, ModelResults

MAX_VARIANTS = 64
_GROUPS = ("held out", "unseen")
_FIXED = ("seed", "output_dir")
_SAME_FOR_ALL = frozenset(
    ("clients", "contract", "data", "evaluation", "normalization", "partition", "rollout", "simulator")
)
"""Settings, or their sections, with which two sessions would be evaluated on something else, or in other units."""


class Variant(Record):
    """One choice of the varied settings."""

    name: str
    """Such as `aggregation.strategy=scaffold, training.proximal_mu=0.01`."""
    folder: str
    """Name of its folder, the same whatever other variants there are."""
    overrides: dict[str, Any]


class VariantRun(Record):
    """The model of one variant under one training seed, with its results."""

    variant: str
    seed: int
    results: ModelResults


class VariantSummary(Record):
    """One variant on one group of episodes or tasks: its mean, and its difference to the first variant."""

    variant: str
    metric: MetricName
    evaluated_on: str
    """`held out`: the clients' episodes and tasks; `unseen`: those that no client has."""
    seeds: int
    units: int
    """Episodes or attempts, each under every seed."""
    mean: float
    interval: tuple[float, float] | None
    """95 % interval of the mean over seeds and units (`crossed_mean`)."""
    change: float | None
    """Mean minus the first variant's, over the same seeds and units; None for the first variant."""
    change_interval: tuple[float, float] | None
    """95 % interval of the change, paired; None for the first variant, or if all differences are equal."""


def variants_of(varied: Mapping[str, Sequence[Any]]) -> tuple[Variant, ...]:
    """Return all combinations of the settings' values, in the order in which they are given.

    >>> [v.name for v in variants_of({"aggregation.strategy": ["fedavg", "scaffold"], "rounds": [2]})]
    ['aggregation.strategy=fedavg, rounds=2', 'aggregation.strategy=scaffold, rounds=2']

    Raises:
        SettingsError: there are fewer than two or more than `MAX_VARIANTS`, a value is listed twice, or a setting is
            one that the comparison itself sets, or that must be the same for all.
    """
    for name, values in varied.items():
        if name in _FIXED:
            raise SettingsError(f"--vary {name}: set by the comparison itself (seeds by --seeds, folder by --out)")
        if name.partition(".")[0] in _SAME_FOR_ALL:
            raise SettingsError(
                f"--vary {name}: changes data, normalization or evaluation, so that results could not be compared; "
                "expected a setting of training, aggregation, federation or scheduler"
            )
        if len({repr(value) for value in values}) < len(values):
            raise SettingsError(f"--vary {name}: a value is listed twice; expected each once")
    chosen = [dict(zip(varied, values, strict=True)) for values in product(*varied.values())] if varied else []
    if not 2 <= len(chosen) <= MAX_VARIANTS:
        raise SettingsError(f"--vary: {len(chosen)} combinations, expected 2 to {MAX_VARIANTS}")
    return tuple(Variant(name=_name(one, ", "), folder=_folder(one), overrides=one) for one in chosen)


def _name(overrides: Mapping[str, Any], separator: str) -> str:
    return separator.join(f"{name}={value}" for name, value in overrides.items())


def _folder(overrides: Mapping[str, Any]) -> str:
    text = _name(overrides, "_")
    return "".join(c if c.isalnum() or c in "._=-" else "-" for c in text)[:200]


def variant_summaries(runs: Sequence[VariantRun]) -> tuple[VariantSummary, ...]:
    """Return the mean of each variant and its paired difference to the first, by metric and group of episodes.

    Args:
        runs: of every variant under the same seeds.

    Raises:
        EvaluationError: two runs were evaluated on different episodes or attempts, or with different statistics.
    """
    _check_same_statistics(runs)
    return tuple(found for metric in METRICS for group in _GROUPS for found in _summaries(runs, metric, group))


def _check_same_statistics(runs: Sequence[VariantRun]) -> None:
    """Losses are in normalized units: all runs must have the same statistics."""
    for run in runs:
        if run.results.statistics != runs[0].results.statistics:
            raise EvaluationError(
                f"{run.variant}, seed {run.seed}: states and actions are normalized with other statistics than in "
                f"{runs[0].variant}, seed {runs[0].seed}; vary no setting that changes data or normalization"
            )


def _summaries(runs: Sequence[VariantRun], metric: MetricName, group: str) -> Iterator[VariantSummary]:
    tables = _tables(runs, metric, group)
    first = next(iter(tables.values()), [])
    if not first or not first[0]:
        return
    for name, rows in tables.items():
        if [row.keys() for row in rows] != [row.keys() for row in first]:
            raise EvaluationError(
                f"{metric}: {name} and {next(iter(tables))} were evaluated on different episodes or attempts; vary no "
                "setting of the evaluation"
            )
        yield _summary(name, metric, group, rows, None if rows is first else first)


def _tables(runs: Sequence[VariantRun], metric: MetricName, group: str) -> dict[str, list[dict[PairedUnit, float]]]:
    """Variant -> for each seed, the value of each unit of the group."""
    found: dict[str, list[dict[PairedUnit, float]]] = {}
    for run in sorted(runs, key=lambda one: one.seed):
        values = values_by_unit(run.results, metric)
        chosen = {unit: value for unit, value in values.items() if (unit[0] is None) == (group == "unseen")}
        found.setdefault(run.variant, []).append(chosen)
    return {name: found[name] for name in dict.fromkeys(run.variant for run in runs)}


def _summary(
    name: str,
    metric: MetricName,
    group: str,
    rows: Sequence[dict[PairedUnit, float]],
    reference: Sequence[dict[PairedUnit, float]] | None,
) -> VariantSummary:
    values = [[row[unit] for unit in rows[0]] for row in rows]
    change, change_interval = None, None
    if reference is not None:
        before = [[row[unit] for unit in rows[0]] for row in reference]
        changes = [[b - a for a, b in zip(*pair, strict=True)] for pair in zip(before, values, strict=True)]
        change, change_interval = crossed_interval(changes)
    mean, interval = crossed_interval(values)
    return VariantSummary(
        variant=name,
        metric=metric,
        evaluated_on=group,
        seeds=len(rows),
        units=len(rows[0]),
        mean=mean,
        interval=interval,
        change=change,
        change_interval=change_interval,
    )
