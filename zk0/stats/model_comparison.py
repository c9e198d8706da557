"""Paired comparison of two models that were evaluated in the same way, with 95 % intervals (`zk0 compare`)."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from zk0.audit.ledger import Ledger
from zk0.errors import EvaluationError, SettingsError
from zk0.records import ClientEvaluation, Evaluation, Record, Rollout, SetScore
from zk0.stats.intervals import EpisodeMetric, Estimate, mean_of_estimates, rate_difference, set_improvement
from zk0.storage.redaction import public_name
from zk0.storage.results import read_rollouts
from zk0.storage.session_folder import SessionFolder

MetricName = Literal["policy_loss", "action_error", "success_rate"]
METRICS: tuple[MetricName, ...] = get_args(MetricName)
_FIELD: dict[str, EpisodeMetric] = {"policy_loss": "policy_loss", "action_error": "action_error_degrees"}


class ModelResults(Record):
    """Evaluation results of one model: the last evaluated one in a folder, or that of a given round."""

    label: str
    """Name of the folder."""
    round: int | None
    """None for a folder of `zk0 rollout`."""
    unseen: Evaluation | None
    """On datasets that no client trained on."""
    held_out: ClientEvaluation | None
    """On the held-out episodes of the clients."""
    rollouts: tuple[Rollout, ...]
    statistics: str | None
    """SHA-256 of the statistics that normalized states and actions; None where they are not recorded."""


class ModelDifference(Record):
    """One row of a comparison: `after` against `before`, over the same episodes or attempts."""

    metric: MetricName
    subject: str
    """The evaluation set, client or task; or the mean over several."""
    pairs: int
    """Number of episodes or attempts."""
    before: float
    after: float
    change: float
    """after - before."""
    interval: tuple[float, float] | None
    """95 % interval of the change, paired; None for a single episode."""


def read_model_results(folder: Path, round_number: int | None = None) -> ModelResults:
    """Read the results of one model from a session folder or a folder of `zk0 rollout`.

    Args:
        folder: of the session or of `zk0 rollout`.
        round_number: the round of the model; None: the last evaluated round.

    Raises:
        EvaluationError: the folder holds no results, or a result cannot be read.
        LedgerError: the ledger contradicts itself.
    """
    history = Ledger(folder / "ledger.jsonl").read()
    if not history:
        rollouts = read_rollouts(folder) if folder.is_dir() else []
        if not rollouts:
            raise EvaluationError(f"{folder}: no results; expected the folder of a session or of zk0 rollout")
        if (models := len({r.checkpoint for r in rollouts})) > 1:
            raise EvaluationError(f"{folder}: holds attempts of {models} models; name the folder of one of them")
        return _rollout_results(folder, rollouts)
    evaluated = [r for r in history if r.evaluation or r.client_evaluation]
    last = history[round_number] if round_number is not None else evaluated[-1] if evaluated else history[-1]
    rollouts = [r for r in read_rollouts(folder / "evaluate") if r.checkpoint == last.checkpoint.digest]
    return _rollout_results(folder, rollouts).model_copy(
        update={
            "round": last.round,
            "unseen": last.evaluation,
            "held_out": last.client_evaluation,
            "statistics": _statistics_digest(folder),
        }
    )


def compare_models(
    before: ModelResults, after: ModelResults, metrics: Sequence[MetricName] = METRICS
) -> tuple[ModelDifference, ...]:
    """All differences for which both models have results.

    Raises:
        EvaluationError: the models were evaluated in different ways, or a metric is missing in one of them.
    """
    found: list[ModelDifference] = []
    for metric in metrics:
        rows = _rate_differences(before, after) if metric == "success_rate" else _differences(before, after, metric)
        if not rows:
            raise EvaluationError(f"{metric}: {before.label} and {after.label} have no evaluation in common")
        found += rows
    return tuple(found)


def compare_available(before: ModelResults, after: ModelResults) -> tuple[tuple[ModelDifference, ...], tuple[str, ...]]:
    """All differences of the metrics for which both models have comparable results, and why other metrics are left out.

    Raises:
        EvaluationError: there is no such metric; it holds the reason of each.
    """
    found, reasons = list[ModelDifference](), list[str]()
    for metric in METRICS:
        try:
            found += compare_models(before, after, (metric,))
        except EvaluationError as e:
            reasons.append(str(e))
    if not found:
        raise EvaluationError("; ".join(reasons))
    return tuple(found), tuple(reasons)


def parse_metrics(text: str) -> tuple[MetricName, ...]:
    """Parse a comma-separated list of metrics.

    >>> parse_metrics("policy_loss,success_rate")
    ('policy_loss', 'success_rate')

    Raises:
        SettingsError: a name is unknown.
    """
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in METRICS]:
        raise SettingsError(f"--metrics {text}: unknown metric {unknown[0]!r}; expected some of {', '.join(METRICS)}")
    return tuple(name for name in METRICS if name in names)


def _rollout_results(folder: Path, rollouts: Sequence[Rollout]) -> ModelResults:
    return ModelResults(
        label=folder.name, round=None, unseen=None, held_out=None, rollouts=tuple(rollouts), statistics=None
    )


def _statistics_digest(folder: Path) -> str | None:
    setup = SessionFolder(folder).setup
    if not setup.is_file():
        return None
    statistics = json.loads(setup.read_text(encoding="utf-8"))["statistics"]
    return hashlib.sha256(json.dumps(statistics, sort_keys=True).encode()).hexdigest()


def _differences(before: ModelResults, after: ModelResults, metric: MetricName) -> list[ModelDifference]:
    """Differences of a loss or an action error: on the unseen sets, then on the clients' held-out episodes."""
    found: list[ModelDifference] = []
    if before.unseen and after.unseen:
        _check_comparable(before, after, before.unseen, after.unseen, metric)
        found += _set_differences(metric, _same_sets(before, after), "unseen sets")
    if before.held_out and after.held_out:
        _check_comparable(before, after, before.held_out, after.held_out, metric)
        first, second = ({s.client: s.score for s in one.scores} for one in (before.held_out, after.held_out))
        shared = [(f"held out by {name}", first[name], second[name]) for name in first if name in second]
        found += _set_differences(metric, shared, "held out")
    return found


def _check_comparable(
    before: ModelResults,
    after: ModelResults,
    one: Evaluation | ClientEvaluation,
    other: Evaluation | ClientEvaluation,
    metric: MetricName,
) -> None:
    """Check for the same seed and draws; for a loss, which is in normalized units, for the same normalization too."""
    settings: list[tuple[str, int | str, int | str]] = [
        ("seed", one.seed, other.seed),
        ("times per frame", one.times, other.times),
    ]
    if metric == "policy_loss":
        settings.append(("normalization", one.normalization, other.normalization))
        settings.append(("statistics", str(before.statistics)[:12], str(after.statistics)[:12]))
    for name, first, second in settings:
        if first != second:
            raise EvaluationError(
                f"{metric}: {before.label} was evaluated with {name} {first}, {after.label} with {second}; "
                "only models that were evaluated in the same way can be compared"
            )


def _same_sets(before: ModelResults, after: ModelResults) -> list[tuple[str, SetScore, SetScore]]:
    first, second = ([] if m.unseen is None else list(m.unseen.sets) for m in (before, after))
    if [s.dataset for s in first] != [s.dataset for s in second]:
        names = [", ".join(public_name(s.dataset) for s in sets) for sets in (first, second)]
        raise EvaluationError(
            f"{before.label} was evaluated on {names[0]}, {after.label} on {names[1]}; expected the same datasets"
        )
    return [(public_name(a.dataset), a, b) for a, b in zip(first, second, strict=True)]


def _set_differences(
    metric: MetricName, pairs: list[tuple[str, SetScore, SetScore]], group: str
) -> list[ModelDifference]:
    """The difference on each set, and its mean over the sets if there are several."""
    field, improvements, found = _FIELD[metric], list[Estimate](), list[ModelDifference]()
    for subject, one, other in pairs:
        try:
            improvement = set_improvement(one, other, field)
        except ValueError as e:
            raise EvaluationError(f"{subject}: {e}; expected the same episodes and frames") from e
        improvements.append(improvement)
        values = float(getattr(one, field)), float(getattr(other, field))
        found.append(_difference(metric, subject, len(one.episodes), values, improvement))
    if len(found) > 1:
        count = sum(d.pairs for d in found)
        means = tuple(sum(getattr(d, side) for d in found) / len(found) for side in ("before", "after"))
        improvement = mean_of_estimates(improvements)
        found.append(_difference(metric, f"mean, {group}", count, (means[0], means[1]), improvement))
    return found


def _difference(
    metric: MetricName, subject: str, pairs: int, values: tuple[float, float], improvement: Estimate
) -> ModelDifference:
    ends = improvement.interval
    return ModelDifference(
        metric=metric,
        subject=subject,
        pairs=pairs,
        before=values[0],
        after=values[1],
        change=-improvement.value,
        interval=(-ends[1], -ends[0]) if ends else None,
    )


def _rate_differences(before: ModelResults, after: ModelResults) -> list[ModelDifference]:
    """The difference of the success rates of each task, and of all tasks if there are several."""
    first, second = ({(r.task, r.seed): r for r in m.rollouts} for m in (before, after))
    if first.keys() != second.keys():
        only = sorted(first.keys() ^ second.keys())
        raise EvaluationError(
            f"success_rate: {len(only)} attempts exist in only one of {before.label} and {after.label}, first: "
            f"{only[0][0]}, seed {only[0][1]}; expected the same tasks and seeds"
        )
    if other := [key for key in first if first[key].conditions_digest != second[key].conditions_digest]:
        raise EvaluationError(
            f"success_rate: {before.label} and {after.label} attempted {other[0][0]} under different conditions "
            "(simulator, step limit, or steps between predictions); only models that were evaluated in the same way "
            "can be compared"
        )
    tasks = list(dict.fromkeys(task for task, _ in first))
    groups = [(task, [key for key in first if key[0] == task]) for task in tasks]
    groups += [("all tasks", list(first))] if len(tasks) > 1 else []
    return [
        _rate_difference(subject, [first[k].success for k in keys], [second[k].success for k in keys])
        for subject, keys in groups
    ]


def _rate_difference(subject: str, before: list[bool], after: list[bool]) -> ModelDifference:
    change, ends = rate_difference(before, after)
    return ModelDifference(
        metric="success_rate",
        subject=subject,
        pairs=len(before),
        before=sum(before) / len(before),
        after=sum(after) / len(after),
        change=change,
        interval=ends,
    )
