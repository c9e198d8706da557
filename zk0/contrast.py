"""Federated against its baselines, paired over training seeds and over what judges: episodes, or attempts.

Baselines: the model that all begin with (base), each client alone, and all clients' data in one place (centralised).
"""

from collections.abc import Collection, Iterator, Sequence
from math import fsum
from typing import Literal

from zk0.comparison import METRICS, Measured, MetricName
from zk0.errors import EvaluationError
from zk0.interval import crossed_mean, wilson
from zk0.public import public_name
from zk0.records import EpisodeScore, Record, RoundRecord

Kind = Literal["base", "alone", "federated", "centralised"]
Where = Literal["held out", "own", "others", "unseen"]
WHERE: dict[Kind, tuple[Where, ...]] = {
    "base": ("held out", "unseen"),
    "alone": ("own", "others", "unseen"),
    "centralised": ("held out", "unseen"),
}
"""What each baseline is compared on: what clients hold out (their own, that of the others) and what nobody has."""
CENTRALISED: Kind = "centralised"
"""The baseline with all data in one place, and what stands for it where clients are named."""
SHARED = "several clients"
"""Stands for the owner of a task that more than one client brought."""
Unit = tuple[str | None, str, int]
"""Owner (None: nobody trained on it), data set or task, episode or seed of the attempt."""


class Work(Record):
    """What training has taken."""

    steps: int
    """Of the optimizer; of a federation, those of all clients together."""
    samples: int
    """Frames that these steps saw, counted as often as they were seen."""


class Contestant(Record):
    """One model under one training seed."""

    kind: Kind
    client: str | None = None
    """The one that trained alone."""
    seed: int
    work: Work
    measured: Measured

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return f"{self.client} alone" if self.client else self.kind


class Contrast(Record):
    """The federated model against one baseline: means over the same units and seeds, and their difference."""

    metric: MetricName
    against: Kind
    where: Where
    seeds: int
    units: int
    """Episodes or attempts, each of them under every seed."""
    baseline: float
    federated: float
    change: float
    """federated - baseline."""
    interval: tuple[float, float] | None
    """95 %, over seeds and units (`crossed_mean`); None where one of each is all there is, or where no pair differs."""

    @property
    def percent(self) -> float | None:
        """The change in percent of the baseline; None where that is zero."""
        return 100 * self.change / self.baseline if self.baseline else None


class Average(Record):
    """One model on one data set or task, over all seeds."""

    model: str
    metric: MetricName
    what: str
    seeds: int
    value: float
    interval: tuple[float, float] | None = None
    """Of a success rate, Wilson's over all attempts of all seeds."""
    successes: int | None = None
    attempts: int | None = None


def work_of(history: Sequence[RoundRecord], batch_size: int, client: str | None = None) -> Work:
    """What the rounds of a federation have taken, all clients together or one of them.

    A pass over a client's frames ends with a short batch where they do not divide.
    """
    updates = [u for record in history for u in record.updates if client in (None, u.client)]
    return Work(
        steps=sum(u.metrics.local_steps for u in updates),
        samples=sum(samples_in(u.metrics.local_steps, u.examples, batch_size) for u in updates),
    )


def samples_in(steps: int, frames: int, batch_size: int) -> int:
    """Frames that so many steps see, pass after pass.

    >>> samples_in(steps=5, frames=10, batch_size=4)  # 4 4 2, 4 4
    18
    """
    passes, rest = divmod(steps, -(-frames // batch_size))
    return passes * frames + min(rest * batch_size, frames)


def contrasts(models: Sequence[Contestant], shared: Collection[str] = ()) -> tuple[Contrast, ...]:
    """Every difference that was measured; `shared` are the tasks that more than one client brought.

    Raises:
        EvaluationError: two models of one seed, or two seeds, were not judged on the same.
    """
    return tuple(
        found
        for metric in METRICS
        for against, places in WHERE.items()
        for where in places
        if (found := _contrast(models, shared, (metric, against, where))) is not None
    )


def averages(models: Sequence[Contestant]) -> tuple[Average, ...]:
    """Every model on every data set and task, over its seeds; models in the order in which they are first named."""
    found: list[Average] = []
    for name in dict.fromkeys(m.name for m in models):
        group = [m for m in models if m.name == name]
        for metric in METRICS:
            found += _averages(name, metric, [_units(m, metric, ()) for m in group])
    return tuple(found)


def _averages(name: str, metric: MetricName, tables: Sequence[dict[Unit, float]]) -> Iterator[Average]:
    tables = [table for table in tables if table]
    for owner, what in dict.fromkeys((owner, what) for table in tables for owner, what, _ in table):
        rows = [[v for (o, w, _), v in table.items() if (o, w) == (owner, what)] for table in tables]
        values = [value for row in rows for value in row]
        label = what if metric == "success_rate" else f"held out by {owner}" if owner else public_name(what)
        common = {
            "model": name,
            "metric": metric,
            "what": label,
            "seeds": len(rows),
            "value": fsum(values) / len(values),
        }
        if metric != "success_rate":
            yield Average.model_validate(common)
            continue
        won = round(fsum(values))
        ends = wilson(won, len(values))
        yield Average.model_validate(common | {"interval": ends, "successes": won, "attempts": len(values)})


def _contrast(
    models: Sequence[Contestant], shared: Collection[str], asked: tuple[MetricName, Kind, Where]
) -> Contrast | None:
    metric, against, where = asked
    rows: list[dict[Unit, tuple[float, float]]] = []
    for seed in dict.fromkeys(m.seed for m in models):
        mine = [m for m in models if m.seed == seed]
        federated = next(_units(m, metric, shared) for m in mine if m.kind == "federated")
        rivals = [(m, _units(m, metric, shared)) for m in mine if m.kind == against]
        rows.append(_paired(federated, rivals, where, metric))
    if not all(rows):
        return None
    if any(row.keys() != rows[0].keys() for row in rows):
        raise EvaluationError(
            f"{metric}: not every seed was judged on the same; expected the same episodes and attempts"
        )
    differences = [[after - before for before, after in row.values()] for row in rows]
    mean = crossed_mean(differences)
    sides = [[pair[side] for row in rows for pair in row.values()] for side in (0, 1)]
    varied = any(d != differences[0][0] for row in differences for d in row)
    return Contrast(
        metric=metric,
        against=against,
        where=where,
        seeds=len(rows),
        units=len(rows[0]),
        baseline=fsum(sides[0]) / len(sides[0]),
        federated=fsum(sides[1]) / len(sides[1]),
        change=mean.value,
        interval=mean.interval if varied else None,
    )


def _paired(
    federated: dict[Unit, float], rivals: Sequence[tuple[Contestant, dict[Unit, float]]], where: Where, metric: str
) -> dict[Unit, tuple[float, float]]:
    """Each unit under the baseline (the mean of all that are asked about it) and under the federated model."""
    found: dict[Unit, tuple[float, float]] = {}
    rivals = [(model, values) for model, values in rivals if values]
    for model, values in rivals:
        if values.keys() != federated.keys():
            raise EvaluationError(
                f"{metric}: {model.name} (seed {model.seed}) was not judged on what the federated model was; "
                "remove its folder and run again"
            )
    for unit, value in federated.items():
        asked = [values[unit] for model, values in rivals if _belongs(where, unit[0], model.client)]
        if asked:
            found[unit] = fsum(asked) / len(asked), value
    return found


def _belongs(where: Where, owner: str | None, client: str | None) -> bool:
    if where == "unseen" or owner is None:
        return where == "unseen" and owner is None
    if where == "held out":
        return True
    return owner != SHARED and (owner == client) == (where == "own")


def _units(model: Contestant, metric: MetricName, shared: Collection[str]) -> dict[Unit, float]:
    one = model.measured
    if metric == "success_rate":
        return {(SHARED if r.task in shared else r.client, r.task, r.seed): float(r.success) for r in one.rollouts}
    held = one.held_out.scores if one.held_out else ()
    unseen = one.unseen.sets if one.unseen else ()
    found = {(s.client, s.score.dataset, e.episode): _value(e, metric) for s in held for e in s.score.episodes}
    return found | {(None, s.dataset, e.episode): _value(e, metric) for s in unseen for e in s.episodes}


def _value(episode: EpisodeScore, metric: MetricName) -> float:
    return episode.policy_loss if metric == "policy_loss" else episode.action_error_degrees
