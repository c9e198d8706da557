"""The steps that evaluate the global model: on unseen datasets, on clients' held-out episodes, in closed loop."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from prefect import task
from prefect.artifacts import create_link_artifact
from prefect.cache_policies import NO_CACHE

from tasks.client_task_runs import ClientTaskRuns, answer_summary
from tasks.events import ProgressEvent, emit_progress, log_line
from tasks.retry import DISK_RETRIES, NODE_RETRIES
from zk0.records import Checkpoint, ClientEvaluation, Evaluation, Rollout, RoundRecord
from zk0.settings.session import Session
from zk0.storage.atomic import atomic_write_text
from zk0.storage.session_folder import SessionFolder

if TYPE_CHECKING:
    from zk0.evaluation.session_setup import SessionSetup


@task(task_run_name="evaluate round {checkpoint.round}", cache_policy=NO_CACHE, **DISK_RETRIES)
def evaluate_global_model(session: Session, folder: str, setup: "SessionSetup", checkpoint: Checkpoint) -> Evaluation:
    """Evaluate the global model on the evaluation sets, on which no client trains."""
    from zk0.evaluation.global_model import evaluate_weights

    number = checkpoint.round
    emit_progress(ProgressEvent(kind="stage", text=f"evaluating round {number}", round=number))

    def on_frames(dataset: str, done: int, frames: int) -> None:
        emit_progress(ProgressEvent(kind="frames_read", client=dataset, round=number, step=done, steps=frames))

    weights = (Path(folder) / checkpoint.path, checkpoint.digest)
    found = evaluate_weights(session, setup, weights, number, on_frames)
    log_line(
        f"round {number}: policy loss {found.policy_loss:.4f} on unseen data, "
        f"action error {found.action_error_degrees:.2f} degrees"
    )
    emit_progress(ProgressEvent(kind="evaluated", round=number, text=f"policy loss {found.policy_loss:.4f}"))
    return found


@task(task_run_name="clients evaluate round {checkpoint.round}", cache_policy=NO_CACHE, **NODE_RETRIES)
def evaluate_on_clients(
    session: Session, folder: str, setup: "SessionSetup", checkpoint: Checkpoint
) -> ClientEvaluation:
    """Let each client evaluate the global model on its held-out episodes; clients return numbers only.

    A client that cannot evaluate is among the refusals, with the reason.
    """
    from zk0.evaluation.client_plans import client_evaluation_plan, episode_video_plan, evaluating_clients
    from zk0.federation.open import get_federation
    from zk0.federation.protocol.downlink import encode_global_weights

    started, here, number = perf_counter(), SessionFolder(Path(folder)), checkpoint.round
    emit_progress(ProgressEvent(kind="stage", text=f"clients evaluate round {number}", round=number))
    sent = encode_global_weights(session.federation, here.path / checkpoint.path, here.sent_weights(number))
    video = episode_video_plan(session, number, datetime.now().astimezone())
    names = evaluating_clients(session, setup)
    plans = [client_evaluation_plan(name, session, here.name, setup, checkpoint) for name in names]
    plans = [sent.with_wire(plan.model_copy(update={"video": video})) for plan in plans]
    with ClientTaskRuns("evaluates", number, len(plans) <= session.tracking.client_task_runs) as runs:
        found = get_federation(here.name).evaluate(plans, sent.path, runs)
    for score in found.scores:
        runs.log_line(score.client, f": {answer_summary(score)}")
    for refusal in found.refusals:
        runs.log_line(refusal.client, f" did not evaluate: {refusal.reason}")
    return ClientEvaluation(
        round=number,
        scores=found.scores,
        refusals=found.refusals,
        normalization=setup.normalization,
        seed=session.seed,
        times=session.evaluation.times,
        seconds=perf_counter() - started,
    )


@task(task_run_name="render videos round {checkpoint.round}", cache_policy=NO_CACHE, **DISK_RETRIES)
def render_episode_videos(
    session: Session, folder: str, setup: "SessionSetup", checkpoint: Checkpoint, evaluation: Evaluation
) -> None:
    """Render videos of evaluation episodes: the recorded motion beside the motion that the model predicts."""
    from zk0.evaluation.client_plans import episode_video_plan
    from zk0.evaluation.episode_videos import render_evaluation_videos

    number, here = checkpoint.round, SessionFolder(Path(folder))
    plan = episode_video_plan(session, number, datetime.now().astimezone())
    if plan is None:
        return
    emit_progress(ProgressEvent(kind="stage", text=f"rendering videos of round {number}", round=number))
    for made in render_evaluation_videos(session, setup, here, (checkpoint, evaluation), plan):
        if made.video_error:
            log_line(f"{made.dataset}, episode {made.episode}: no video: {made.video_error}")


@task(task_run_name="joining reports", cache_policy=NO_CACHE, **NODE_RETRIES)
def write_joining_reports(session: Session, folder: str, setup: "SessionSetup", history: Sequence[RoundRecord]) -> None:
    """Let each client measure on its own episodes what joining brought it; write the reports that clients share."""
    from zk0.evaluation.client_plans import joining_report_plans
    from zk0.federation.open import get_federation

    here = SessionFolder(Path(folder))
    text = "clients measure what joining brought them"
    emit_progress(ProgressEvent(kind="stage", text=text, round=history[-1].round))
    plans = joining_report_plans(session, here.name, setup, history)
    first, last = (here.path / record.checkpoint.path for record in (history[0], history[-1]))
    found, refusals = get_federation(here.name).collect_joining_reports(plans, first, last)
    for refusal in refusals:
        log_line(f"{refusal.client} has no joining report: {refusal.reason}")
    for client, report in found.items():
        log_line(f"{client} {'shares its joining report' if report else 'does not share its joining report'}")
        if report:
            target = here.path / "joining" / f"{client}.json"
            atomic_write_text(target, report)


@task(task_run_name="roll out {name} round {record.round}", cache_policy=NO_CACHE, **DISK_RETRIES)
def run_rollouts(
    session: Session, folder: str, setup: "SessionSetup", record: RoundRecord, name: str
) -> tuple[Rollout, ...]:
    """Run the policy in closed loop on one simulated task, one attempt per seed; finished attempts are only read."""
    from zk0.evaluation.closed_loop import roll_out_task

    number, here = record.round, SessionFolder(Path(folder))
    emit_progress(
        ProgressEvent(kind="stage", text=f"round {number}: rollouts of {name} in the simulator", round=number)
    )
    rollouts = roll_out_task(session, setup, here, record, name, datetime.now().astimezone())
    successes = sum(r.success for r in rollouts)
    log_line(f"round {number}: {name} in closed loop: {successes} of {len(rollouts)} attempts succeeded")
    for rollout in rollouts:
        if rollout.video_error:
            log_line(f"{name}, seed {rollout.seed}: no video: {rollout.video_error}")
        if rollout.video:
            result = "success" if rollout.success else "no success"
            link = (here.path / rollout.video).resolve().as_uri()
            title = f"{name}, round {number}, seed {rollout.seed}: {result}"
            create_link_artifact(link=link, link_text=title, key="rollout-video", description=rollout.video)
    return rollouts
