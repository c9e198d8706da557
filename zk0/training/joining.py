"""Has joining helped me? Four models on a client's own held-out episodes, on its own machine.

`base` is the policy the session began with; `alone` the client's own training from it, round after round as in the
session (same steps, rates, frames), with nobody to average with; `federated` the global model at the end; `adapted`
that model after one more round of the client's own. Only numbers are written down; they leave if the client says so.
"""

from dataclasses import replace
from pathlib import Path

from zk0.errors import EvaluationError
from zk0.folder import write_whole
from zk0.interval import Estimate, set_fall, weighted_mean
from zk0.records import Record, SetScore
from zk0.session import EvaluationPlan, JoiningPlan, RoundPlan
from zk0.training.client import Client

MODELS = ("base", "alone", "federated", "adapted")


class JoiningReport(Record):
    """What joining has brought one client; losses are means over its held-out episodes, weighted by their actions."""

    client: str
    dataset: str
    rounds: int
    models: dict[str, SetScore]
    losses: dict[str, Estimate]
    falls: dict[str, Estimate]
    """Paired over episodes; `alone-federated` is how much lower the loss of `federated` is than that of `alone`."""


def train_alone(client: Client, plan: JoiningPlan, base: Path) -> None:
    """Judge the base, train from it alone for as many rounds as the session had, and judge that.

    Raises:
        EvaluationError: nothing is held out.
    """
    scores = {"base": _judge(client, plan, base, plan.global_digest)}
    weights, digest = base, plan.global_digest
    for number in range(1, len(plan.lrs) + 1):
        update = _alone(client).train(_round(client, plan, number, digest), weights)
        weights, digest = Path(update.path), update.digest
    _keep(client, scores | {"alone": _judge(client, plan, weights, digest)})


def judge_joined(client: Client, plan: JoiningPlan, final: Path) -> JoiningReport:
    """Judge the global model and what one more round of the client's own makes of it; the whole report.

    The report lies in the client's scratch folder, as `joining.json` and for people as `joining.md`.

    Raises:
        EvaluationError: the client has not trained alone yet.
    """
    kept = client.scratch / "joining-scores.json"
    if not kept.is_file():
        raise EvaluationError(f"{client.name}: has not trained alone in this session; ask for that first")
    before = _Scores.model_validate_json(kept.read_text(encoding="utf-8")).scores
    federated = _judge(client, plan, final, plan.global_digest)
    update = _alone(client).train(_round(client, plan, len(plan.lrs) + 1, plan.global_digest), final)
    adapted = _judge(client, plan, Path(update.path), update.digest)
    models = {**before, "federated": federated, "adapted": adapted}
    pairs = (("base", "federated"), ("alone", "federated"), ("alone", "adapted"), ("federated", "adapted"))
    report = JoiningReport(
        client=client.name,
        dataset=client.settings.dataset,
        rounds=len(plan.lrs),
        models=models,
        losses={name: _loss(score) for name, score in models.items()},
        falls={f"{a}-{b}": set_fall(models[a], models[b]) for a, b in pairs},
    )
    write_whole(client.scratch / "joining.json", report.model_dump_json(indent=2))
    write_whole(client.scratch / "joining.md", page(report))
    return report


def page(report: JoiningReport) -> str:
    """The report for people, as Markdown."""
    titles = {
        "base": "the policy everyone began with",
        "alone": "your own training from it, alone",
        "federated": "the federation's model",
        "adapted": "the federation's model, one round of your own on top",
    }
    rows = [
        f"| {titles[name]} | {_plus_minus(report.losses[name])} | {report.models[name].action_error_degrees:.2f} |"
        for name in MODELS
    ]
    episodes = len(report.models["base"].episodes)
    lines = [
        f"# What joining has brought {report.client}",
        "",
        _verdict(report.falls["alone-federated"], "The federation's model", "your own training alone"),
        _verdict(report.falls["alone-adapted"], "With one round of your own on top, it", "your own training alone"),
        "",
        f"Judged on {episodes} held-out episode(s) of {report.dataset}, after {report.rounds} round(s).",
        "",
        "| model | policy loss (95 % interval) | action error |",
        "|---|---:|---:|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


class _Scores(Record):
    scores: dict[str, SetScore]


def _keep(client: Client, scores: dict[str, SetScore]) -> None:
    write_whole(client.scratch / "joining-scores.json", _Scores(scores=scores).model_dump_json())


def _alone(client: Client) -> Client:
    """The same client with another place for its updates: those of the session stay as they are."""
    return replace(client, scratch=client.scratch / "alone")


def _judge(client: Client, plan: JoiningPlan, weights: Path, digest: str) -> SetScore:
    asked = {name: getattr(plan, name) for name in EvaluationPlan.model_fields} | {"global_digest": digest}
    return client.evaluate(EvaluationPlan(**asked), weights).score


def _round(client: Client, plan: JoiningPlan, number: int, digest: str) -> RoundPlan:
    """A round of one client: nobody to stay near to, so no proximal term."""
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


def _loss(score: SetScore) -> Estimate:
    return weighted_mean([e.policy_loss for e in score.episodes], [e.actions for e in score.episodes])


def _plus_minus(estimate: Estimate) -> str:
    if estimate.interval is None:
        return f"{estimate.value:.4f} (one episode: no interval)"
    low, high = estimate.interval
    return f"{estimate.value:.4f} ({low:.4f} to {high:.4f})"


def _verdict(fall: Estimate, what: str, than: str) -> str:
    """One sentence, as sure as the interval is.

    >>> _verdict(Estimate(value=0.2, se=0.01, dof=4), "It", "before")
    'It has a lower loss than before: by 0.2000 (0.1722 to 0.2278).'
    >>> _verdict(Estimate(value=0.2, se=None, dof=None), "It", "before")
    'It differs from before by 0.2000 (one episode: no interval); nothing can be said.'
    """
    if fall.interval is None:
        return f"{what} differs from {than} by {_plus_minus(fall)}; nothing can be said."
    low, high = fall.interval
    if low > 0:
        return f"{what} has a lower loss than {than}: by {_plus_minus(fall)}."
    if high < 0:
        rise = Estimate(value=-fall.value, se=fall.se, dof=fall.dof)
        return f"{what} has a higher loss than {than}: by {_plus_minus(rise)}."
    return f"{what} cannot be told from {than}: the loss is lower by {_plus_minus(fall)}."
