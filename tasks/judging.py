"""How good the global model is: on data nobody trained on, on what clients hold out, in closed loop."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from prefect import task
from prefect.artifacts import create_link_artifact
from prefect.cache_policies import NO_CACHE

from tasks.client_runs import ClientRuns, measured
from tasks.events import Event, say, tell
from zk0.folder import SessionFolder, write_whole
from zk0.records import Checkpoint, ClientEvaluation, Evaluation, Rollout, RoundRecord
from zk0.schedule import client_lr
from zk0.session import EvaluationPlan, FilmPlan, JoiningPlan, Session, terms_of

if TYPE_CHECKING:
    from zk0.training.judge import Ground


@task(task_run_name="evaluate round {checkpoint.round}", cache_policy=NO_CACHE)
def evaluate(session: Session, folder: str, ground: "Ground", checkpoint: Checkpoint) -> Evaluation:
    """The global model on data that no client trained on."""
    from zk0.training.judge import evaluate_weights

    tell(Event(kind="stage", text=f"judging round {checkpoint.round}", round=checkpoint.round))

    def on_frames(dataset: str, done: int, frames: int) -> None:
        tell(Event(kind="frames", client=dataset, round=checkpoint.round, step=done, steps=frames))

    weights = (Path(folder) / checkpoint.path, checkpoint.digest)
    found = evaluate_weights(session, ground, weights, checkpoint.round, on_frames)
    say(
        f"round {checkpoint.round}: policy loss {found.policy_loss:.4f} on unseen data, "
        f"action error {found.action_error_degrees:.2f} degrees"
    )
    tell(Event(kind="judged", round=checkpoint.round, text=f"policy loss {found.policy_loss:.4f}"))
    return found


@task(task_run_name="clients evaluate round {checkpoint.round}", cache_policy=NO_CACHE)
def evaluate_on_clients(session: Session, folder: str, ground: "Ground", checkpoint: Checkpoint) -> ClientEvaluation:
    """The global model on what each client holds out; only numbers come back; who cannot answer is told."""
    from zk0.federation.downlink import as_sent
    from zk0.federation.open import federation

    started, here = perf_counter(), SessionFolder(Path(folder))
    tell(Event(kind="stage", text=f"clients judge round {checkpoint.round}", round=checkpoint.round))
    sent = as_sent(session.federation, here.path / checkpoint.path, here.sent(checkpoint.round))
    film = film_plan(session, checkpoint.round)
    names = [member.client for member in ground.members]
    asked = [evaluation_plan_for(name, session, here.name, ground, checkpoint) for name in names]
    plans = [sent.told(plan.model_copy(update={"film": film})) for plan in asked]
    with ClientRuns("judges", checkpoint.round) as runs:
        found = federation(here.name).evaluate(plans, sent.path, runs)
    for score in found.scores:
        runs.say(score.client, f": {measured(score)}")
    for refusal in found.refusals:
        runs.say(refusal.client, f" did not judge: {refusal.reason}")
    return ClientEvaluation(
        round=checkpoint.round,
        scores=found.scores,
        refusals=found.refusals,
        normalization=session.normalization,
        seed=session.seed,
        times=session.evaluation.times,
        seconds=perf_counter() - started,
    )


@task(task_run_name="film round {checkpoint.round}", cache_policy=NO_CACHE)
def film(session: Session, folder: str, ground: "Ground", checkpoint: Checkpoint, judged: Evaluation) -> None:
    """What the model predicts beside what was recorded, on the sets that the server judges on."""
    from zk0.training.films import film_sets

    plan = film_plan(session, checkpoint.round)
    if plan is None:
        return
    tell(Event(kind="stage", text=f"filming round {checkpoint.round}", round=checkpoint.round))
    for made in film_sets(session, ground, SessionFolder(Path(folder)), (checkpoint, judged), plan):
        if made.video_fault:
            say(f"{made.dataset}, episode {made.episode}: no film: {made.video_fault}")


def film_plan(session: Session, round_number: int) -> FilmPlan | None:
    """How judging episodes of this round are filmed, if they are."""
    settings = session.video
    if not (settings.episodes and session.filmed_after(round_number)):
        return None
    now = datetime.now().astimezone()
    return FilmPlan(episodes=settings.episodes, camera_height=settings.camera_height, when=now)


@task(task_run_name="what joining brought", cache_policy=NO_CACHE)
def report_joining(session: Session, folder: str, ground: "Ground", history: Sequence[RoundRecord]) -> None:
    """Each client finds out on its own episodes whether joining has helped it; what it shares lies in its folder."""
    from zk0.federation.open import federation

    here = SessionFolder(Path(folder))
    tell(Event(kind="stage", text="clients find out what joining has brought them", round=history[-1].round))
    first, last = history[0].checkpoint, history[-1].checkpoint
    names = [member.client for member in ground.members]
    alone, joined = (
        [_joining_plan(name, (session, here.name), ground, history, weights) for name in names]
        for weights in (first, last)
    )
    base, final = here.path / first.path, here.path / last.path
    found, refusals = federation(here.name).report_joining((alone, joined), base, final)
    for refusal in refusals:
        say(f"{refusal.client} has no report on joining: {refusal.reason}")
    for client, report in found.items():
        say(f"{client}: {'shares its' if report else 'keeps its'} report on joining")
        if report:
            target = here.path / "joining" / f"{client}.json"
            target.parent.mkdir(exist_ok=True)
            write_whole(target, report)


def _joining_plan(
    client: str, asked: tuple[Session, str], ground: "Ground", history: Sequence[RoundRecord], weights: Checkpoint
) -> JoiningPlan:
    session, name = asked
    plan = evaluation_plan_for(client, session, name, ground, weights)
    lrs = tuple(client_lr(record.decision, client) for record in history if record.decision is not None)
    return JoiningPlan(**dict(plan), lrs=lrs, scheduler=session.scheduler)


def evaluation_plan_for(
    client: str, session: Session, name: str, ground: "Ground", checkpoint: Checkpoint
) -> EvaluationPlan:
    """What one client is told about judging a model."""
    return EvaluationPlan(
        terms=terms_of(session, name),
        round=checkpoint.round,
        client=client,
        recipe=ground.recipe,
        global_digest=checkpoint.digest,
        statistics=ground.statistics if session.normalization == "pooled" else None,
        training=session.training,
        times=session.evaluation.times,
        batch_size=session.evaluation.batch_size,
        every_frames=session.evaluation.every_frames,
    )


@task(task_run_name="roll out {name} round {record.round}", cache_policy=NO_CACHE)
def roll_out(session: Session, folder: str, ground: "Ground", record: RoundRecord, name: str) -> tuple[Rollout, ...]:
    """The policy moves simulated arms, once a seed; what was done before is not done again."""
    from zk0.training.closed_loop import roll_out_task

    tell(Event(kind="stage", text=f"round {record.round} rolls out {name} in the simulator", round=record.round))
    here = SessionFolder(Path(folder))
    rollouts = roll_out_task(session, ground, here, record, name, datetime.now().astimezone())
    successes = sum(r.success for r in rollouts)
    say(f"round {record.round}: {name} in closed loop: {successes} of {len(rollouts)} attempts succeeded")
    for rollout in rollouts:
        if rollout.video_fault:
            say(f"{name}, seed {rollout.seed}: no film: {rollout.video_fault}")
        if rollout.video:
            result = "success" if rollout.success else "no success"
            link = (here.path / rollout.video).resolve().as_uri()
            create_link_artifact(
                link=link, link_text=f"{name}: {result}", key="rollout-video", description=rollout.video
            )
    return rollouts
