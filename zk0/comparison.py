"""Two models measured alike, side by side: what differs, paired, with 95 % intervals."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from zk0.errors import EvaluationError, SettingsError
from zk0.interval import Estimate, Metric, mean_of, rate_difference, set_fall
from zk0.ledger import Ledger
from zk0.public import public_name
from zk0.records import ClientEvaluation, Evaluation, Record, Rollout, SetScore
from zk0.results import read_rollouts

MetricName = Literal["policy_loss", "action_error", "success_rate"]
METRICS: tuple[MetricName, ...] = get_args(MetricName)
_FIELD: dict[str, Metric] = {"policy_loss": "policy_loss", "action_error": "action_error_degrees"}


class Measured(Record):
    """What was measured of the last judged model in a folder."""

    label: str
    round: int | None
    unseen: Evaluation | None
    held_out: ClientEvaluation | None
    rollouts: tuple[Rollout, ...]
    statistics: str | None
    """SHA-256 of the statistics that states and actions were normalised with; None where they are not known."""


class Difference(Record):
    """One line of a comparison: `after` against `before`, over the same episodes or attempts."""

    metric: MetricName
    what: str
    pairs: int
    """Episodes, or attempts."""
    before: float
    after: float
    change: float
    """after - before."""
    interval: tuple[float, float] | None
    """95 %, paired; None where there is a single episode."""


def read_measured(folder: Path, round_number: int | None = None) -> Measured:
    """What a session's folder, or one of `zk0 rollout`, says of its model: that of a round, or the last judged one.

    Raises:
        EvaluationError: nothing was measured there, or a result cannot be read.
        LedgerError: the ledger contradicts itself.
    """
    history = Ledger(folder / "ledger.jsonl").read()
    if not history:
        rollouts = read_rollouts(folder) if folder.is_dir() else []
        if not rollouts:
            raise EvaluationError(f"{folder}: nothing was measured here; expected a session's folder, or zk0 rollout's")
        if (models := len({r.checkpoint for r in rollouts})) > 1:
            raise EvaluationError(f"{folder}: holds attempts of {models} models; name the folder of one of them")
        return _measured(folder, rollouts)
    judged = [r for r in history if r.evaluation or r.client_evaluation]
    last = history[round_number] if round_number is not None else judged[-1] if judged else history[-1]
    made = [r for r in read_rollouts(folder / "evaluate") if r.checkpoint == last.checkpoint.digest]
    found = _measured(folder, made)
    known = {"round": last.round, "unseen": last.evaluation, "held_out": last.client_evaluation}
    return found.model_copy(update=known | {"statistics": _statistics(folder)})


def compare(before: Measured, after: Measured, metrics: Sequence[MetricName] = METRICS) -> tuple[Difference, ...]:
    """Every line that both were measured for.

    Raises:
        EvaluationError: they were not measured alike, or one of them was not measured for a metric at all.
    """
    found: list[Difference] = []
    for metric in metrics:
        rows = _attempts(before, after) if metric == "success_rate" else _scores(before, after, metric)
        if not rows:
            raise EvaluationError(
                f"{metric}: {before.label} and {after.label} have nothing in common to be compared by"
            )
        found += rows
    return tuple(found)


def parse_metrics(text: str) -> tuple[MetricName, ...]:
    """Names of metrics, by commas.

    >>> parse_metrics("policy_loss,success_rate")
    ('policy_loss', 'success_rate')

    Raises:
        SettingsError: there is no such metric.
    """
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in METRICS]:
        raise SettingsError(f"--metrics {text}: no metric {unknown[0]!r}; expected some of {', '.join(METRICS)}")
    return tuple(name for name in METRICS if name in names)


def _measured(folder: Path, rollouts: Sequence[Rollout]) -> Measured:
    return Measured(
        label=folder.name, round=None, unseen=None, held_out=None, rollouts=tuple(rollouts), statistics=None
    )


def _statistics(folder: Path) -> str | None:
    ground = folder / "ground.json"
    if not ground.is_file():
        return None
    said = json.loads(ground.read_text(encoding="utf-8"))["statistics"]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _scores(before: Measured, after: Measured, metric: MetricName) -> list[Difference]:
    found: list[Difference] = []
    if before.unseen and after.unseen:
        _check_way(before, after, before.unseen, after.unseen, metric)
        pairs = _same_sets(before, after)
        found += _differences(metric, pairs, "unseen sets")
    if before.held_out and after.held_out:
        _check_way(before, after, before.held_out, after.held_out, metric)
        first, second = ({s.client: s.score for s in one.scores} for one in (before.held_out, after.held_out))
        shared = [(f"held out by {name}", first[name], second[name]) for name in first if name in second]
        found += _differences(metric, shared, "held out")
    return found


def _check_way(
    before: Measured,
    after: Measured,
    one: Evaluation | ClientEvaluation,
    other: Evaluation | ClientEvaluation,
    metric: MetricName,
) -> None:
    """The same seed and draws; for a loss, which is in normalised units, the same normalisation as well."""
    ways: list[tuple[str, int | str, int | str]] = [
        ("seed", one.seed, other.seed),
        ("times per frame", one.times, other.times),
    ]
    if metric == "policy_loss":
        ways.append(("normalisation", one.normalization, other.normalization))
        ways.append(("statistics", str(before.statistics)[:12], str(after.statistics)[:12]))
    for name, first, second in ways:
        if first != second:
            raise EvaluationError(
                f"{metric}: {before.label} was measured with {name} {first}, {after.label} with {second}; "
                "what was measured differently is not compared"
            )


def _same_sets(before: Measured, after: Measured) -> list[tuple[str, SetScore, SetScore]]:
    first, second = ([] if m.unseen is None else list(m.unseen.sets) for m in (before, after))
    if [s.dataset for s in first] != [s.dataset for s in second]:
        names = [", ".join(public_name(s.dataset) for s in sets) for sets in (first, second)]
        raise EvaluationError(
            f"{before.label} was judged on {names[0]}, {after.label} on {names[1]}; expected the same"
        )
    return [(public_name(a.dataset), a, b) for a, b in zip(first, second, strict=True)]


def _differences(metric: MetricName, pairs: list[tuple[str, SetScore, SetScore]], all_of: str) -> list[Difference]:
    field, falls, found = _FIELD[metric], list[Estimate](), list[Difference]()
    for what, one, other in pairs:
        try:
            fall = set_fall(one, other, field)
        except ValueError as e:
            raise EvaluationError(f"{what}: {e}; expected the same episodes and frames") from e
        falls.append(fall)
        values = float(getattr(one, field)), float(getattr(other, field))
        found.append(_difference(metric, what, len(one.episodes), values, fall))
    if len(found) > 1:
        count = sum(d.pairs for d in found)
        means = tuple(sum(getattr(d, side) for d in found) / len(found) for side in ("before", "after"))
        found.append(_difference(metric, f"mean, {all_of}", count, (means[0], means[1]), mean_of(falls)))
    return found


def _difference(metric: MetricName, what: str, pairs: int, values: tuple[float, float], fall: Estimate) -> Difference:
    ends = fall.interval
    return Difference(
        metric=metric,
        what=what,
        pairs=pairs,
        before=values[0],
        after=values[1],
        change=-fall.value,
        interval=(-ends[1], -ends[0]) if ends else None,
    )


def _attempts(before: Measured, after: Measured) -> list[Difference]:
    first, second = ({(r.task, r.seed): r for r in m.rollouts} for m in (before, after))
    if first.keys() != second.keys():
        only = sorted(first.keys() ^ second.keys())
        raise EvaluationError(
            f"success_rate: {len(only)} attempts were made in one of {before.label} and {after.label} only, first: "
            f"{only[0][0]}, seed {only[0][1]}; expected the same tasks and seeds"
        )
    if other := [key for key in first if first[key].conditions != second[key].conditions]:
        raise EvaluationError(
            f"success_rate: {before.label} and {after.label} tried {other[0][0]} under other conditions (simulator, "
            "limit of steps, or steps between looks); what was measured differently is not compared"
        )
    tasks = list(dict.fromkeys(task for task, _ in first))
    groups = [(task, [key for key in first if key[0] == task]) for task in tasks]
    groups += [("all tasks", list(first))] if len(tasks) > 1 else []
    return [_rate(what, [first[k].success for k in keys], [second[k].success for k in keys]) for what, keys in groups]


def _rate(what: str, before: list[bool], after: list[bool]) -> Difference:
    change, ends = rate_difference(before, after)
    return Difference(
        metric="success_rate",
        what=what,
        pairs=len(before),
        before=sum(before) / len(before),
        after=sum(after) / len(after),
        change=change,
        interval=ends,
    )
