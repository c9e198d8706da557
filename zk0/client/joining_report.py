"""The joining report: what joining the federation has brought one client, measured on its own held-out episodes.

Four models are compared on the client's machine. `base` is the policy that the session started from. `local_only` is
`base` trained by the client alone, round after round with the session's steps, learning rates and frames.
`federated` is the final global model. `fine_tuned` is `federated` after one more round on the client's own data.
The report holds numbers only, and the server receives it only if the client's settings share it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from zk0.client.client import Client
from zk0.client.round_state import LOCAL_TRAINING, remove_session_state
from zk0.errors import EvaluationError
from zk0.records import Record, SetScore, Update
from zk0.settings.plans import EvaluationPlan, JoiningReportPlan, RoundPlan
from zk0.stats.intervals import Estimate
from zk0.stats.joining_comparison import JoiningReport, improvements_of, losses_of
from zk0.storage.atomic import atomic_write_text

_TITLES = {
    "base": "the policy that everyone started from",
    "local_only": "your own training from it, without the others",
    "federated": "the federation's model",
    "fine_tuned": "the federation's model after one more round on your data",
}


class _LocalScores(Record):
    """Scores of `base` and `local_only`, stored until the second part of the report."""

    scores: dict[str, SetScore]


def _go_on() -> None:
    """Do nothing where no clock runs."""


def train_locally(client: Client, plan: JoiningReportPlan, base: Path, stop_late: Callable[[], None] = _go_on) -> None:
    """First part: evaluate `base`, train `local_only` from it for as many rounds as the session, and evaluate it.

    Args:
        client: trains and evaluates.
        plan: learning rates of the session's rounds; its `global_digest` is that of `base`.
        base: the file with the weights of round 0.
        stop_late: called after each optimizer step, batch of an evaluation and file of features; raises to end them.

    Raises:
        EvaluationError: no episode is held out.
    """
    scores = {"base": _evaluate(client, plan, (base, plan.global_digest), stop_late)}
    weights, digest = base, plan.global_digest
    for number in range(1, len(plan.lrs) + 1):
        update = _train(client, _local_round(client, plan, number, digest), weights, stop_late)
        weights, digest = Path(update.path), update.digest
    scores["local_only"] = _evaluate(client, plan, (weights, digest), stop_late)
    atomic_write_text(_scores_file(client), _LocalScores(scores=scores).model_dump_json())


def evaluate_joining(
    client: Client, plan: JoiningReportPlan, final: Path, stop_late: Callable[[], None] = _go_on
) -> JoiningReport:
    """Second part: evaluate `federated` and `fine_tuned`, and write the report; the trained models are removed.

    It lies in the client's scratch folder, as `joining.json` and, to read, `joining.md`.

    Args:
        client: trains and evaluates.
        plan: as for `train_locally`; its `global_digest` is that of the final global model.
        final: the file with the final global weights.
        stop_late: called after each optimizer step, batch of an evaluation and file of features; raises to end them.

    Raises:
        EvaluationError: `train_locally` has not run in this session.
    """
    if not _scores_file(client).is_file():
        raise EvaluationError(f"{client.name}: has not trained locally in this session; expected that request first")
    local = _LocalScores.model_validate_json(_scores_file(client).read_text(encoding="utf-8")).scores
    federated = _evaluate(client, plan, (final, plan.global_digest), stop_late)
    tuning = _local_round(client, plan, len(plan.lrs) + 1, plan.global_digest)
    update = _train(client, tuning, final, stop_late)
    fine_tuned = _evaluate(client, plan, (Path(update.path), update.digest), stop_late)
    models = {**local, "federated": federated, "fine_tuned": fine_tuned}
    report = JoiningReport(
        client=client.name,
        dataset=client.settings.dataset,
        rounds=len(plan.lrs),
        models=models,
        losses=losses_of(models),
        improvements=improvements_of(models),
    )
    atomic_write_text(client.scratch / "joining.json", report.model_dump_json(indent=2))
    atomic_write_text(client.scratch / "joining.md", joining_page(report))
    remove_session_state(_local_client(client).scratch, plan.terms.session)
    return report


def joining_page(report: JoiningReport) -> str:
    """The report as a Markdown page."""
    rows = [
        f"| {title} | {_with_interval(report.losses[name])} | {report.models[name].action_error_degrees:.2f} |"
        for name, title in _TITLES.items()
    ]
    local = "your own training without the others"
    fine_tuned = "With one more round on your data, it"
    episodes = len(report.models["base"].episodes)
    lines = [
        f"# What joining has brought {report.client}",
        "",
        _comparison(report.improvements["local_only-federated"], "The federation's model", local),
        _comparison(report.improvements["local_only-fine_tuned"], fine_tuned, local),
        "",
        f"Evaluated on {episodes} held-out episode(s) of {report.dataset}, after {report.rounds} round(s).",
        "",
        "| model | policy loss (95 % interval) | action error |",
        "|---|---:|---:|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def _scores_file(client: Client) -> Path:
    return client.scratch / "joining-scores.json"


def _local_client(client: Client) -> Client:
    """The same client with another scratch folder, so that the session's updates stay unchanged."""
    return replace(client, scratch=client.scratch / LOCAL_TRAINING)


def _evaluate(
    client: Client, plan: JoiningReportPlan, model: tuple[Path, str], stop_late: Callable[[], None]
) -> SetScore:
    """Return the score of a model: the file of its weights, and their digest."""
    weights, digest = model
    fields = {name: getattr(plan, name) for name in EvaluationPlan.model_fields} | {"global_digest": digest}
    found = client.evaluate(EvaluationPlan(**fields), weights, lambda done, frames: stop_late(), stop_late)
    return found.score.without_step_errors()


def _train(client: Client, plan: RoundPlan, weights: Path, stop_late: Callable[[], None]) -> Update:
    def on_step(step: int, steps: int, loss: float, lr: float) -> None:
        stop_late()

    return _local_client(client).train(plan, weights, on_step, lambda done, frames: stop_late())


def _local_round(client: Client, plan: JoiningReportPlan, number: int, digest: str) -> RoundPlan:
    """A round of one client alone. There is no global model to stay near, so mu is 0."""
    return RoundPlan(
        terms=plan.terms,
        round=number,
        client=client.name,
        recipe=plan.recipe,
        global_digest=digest,
        statistics=plan.statistics,
        training=plan.training,
        scheduler=plan.scheduler,
        lr=plan.lrs[min(number, len(plan.lrs)) - 1],
        mu=0.0,
    )


def _with_interval(estimate: Estimate) -> str:
    if estimate.interval is None:
        return f"{estimate.value:.4f} (one episode: no interval)"
    low, high = estimate.interval
    return f"{estimate.value:.4f} ({low:.4f} to {high:.4f})"


def _comparison(improvement: Estimate, model: str, baseline: str) -> str:
    """One sentence on two models: it names a better one only if the 95 % interval excludes zero.

    >>> _comparison(Estimate(value=0.2, se=0.01, dof=4), "It", "before")
    'It has a lower loss than before: by 0.2000 (0.1722 to 0.2278).'
    >>> _comparison(Estimate(value=0.2, se=None, dof=None), "It", "before")
    'It differs from before by 0.2000 (one episode: no interval); this allows no conclusion.'
    """
    if improvement.interval is None:
        return f"{model} differs from {baseline} by {_with_interval(improvement)}; this allows no conclusion."
    low, high = improvement.interval
    if low > 0:
        return f"{model} has a lower loss than {baseline}: by {_with_interval(improvement)}."
    if high < 0:
        increase = Estimate(value=-improvement.value, se=improvement.se, dof=improvement.dof)
        return f"{model} has a higher loss than {baseline}: by {_with_interval(increase)}."
    return (
        f"{model} does not differ significantly from {baseline}: the loss is lower by {_with_interval(improvement)}, "
        "and the 95 % interval includes zero."
    )
