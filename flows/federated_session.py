"""The flow of a federated session: prepare, run rounds until all are done, evaluate, report, release."""

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.utilities.annotations import opaque, quote

from flows.proxies import exempt_loopback_from_proxies
from flows.session_loading import check_session_inputs, load_session_to_run
from flows.session_location import folder_of_flow_run, folder_to_resume
from tasks import (
    buffered_training,
    evaluation,
    preparation,
    releasing,
    reporting,
    rounds,
    secure_training,
    session_files,
    tracking,
)
from tasks.crashed_task_runs import mark_task_runs_crashed
from tasks.events import ProgressEvent, emit_progress, emit_step_progress, log_line
from tasks.logs import session_logs
from tasks.retry import HUB_RETRIES
from zk0.aggregation.check_strategy import check_strategy
from zk0.audit import merkle
from zk0.records import Checkpoint, ClientEvaluation, Evaluation, Rollout, RoundRecord
from zk0.rules.masking_note import masking_note
from zk0.rules.participation import with_participants
from zk0.rules.round_decision import decide_round
from zk0.rules.selection import final_round
from zk0.settings.moves import absolute_moves, resumed_session, with_moved_folders
from zk0.settings.session import Session
from zk0.storage.session_folder import SessionFolder

if TYPE_CHECKING:
    from zk0.evaluation.session_setup import SessionSetup


def session_run_name() -> str:
    """Return the name of a flow run in the UI: that of its session file, or of the folder that it resumes."""
    parameters = flow_run.parameters
    return Path(parameters.get("resume") or parameters.get("config") or "session").stem


def without_dependency[T](value: T) -> T:
    """Wrap a task's argument so that Prefect neither searches it for task runs nor draws a dependency on one."""
    return cast(T, quote(value))


def with_dependency[T](value: T) -> T:
    """Wrap a task's argument so that Prefect draws the dependency on the task run that made it, but searches no deeper.

    The history of rounds is passed so: each round then depends on the round before it.
    """
    return cast(T, opaque(value))


@flow(
    name="zk0",
    flow_run_name=session_run_name,
    persist_result=False,
    on_crashed=[mark_task_runs_crashed],
    on_cancellation=[mark_task_runs_crashed],
)
def federated_session(
    config: str = "deployments/sessions/demo.toml",
    overrides: dict[str, Any] | None = None,
    resume: str | None = None,
    moved: dict[str, str] | None = None,
) -> str:
    """Train one policy on datasets that stay on their machines.

    Args:
        config: a session file; a relative path starts at the directory of the worker.
        overrides: settings by dotted name that replace those of the file, such as {"rounds": 5, "training.lr": 3e-4}.
        resume: the folder of a session to resume after its last finished round, or the id of the flow run that worked
            in it; `config` is then ignored, and `overrides` may hold what changes no weight (docs/running.md).
        moved: folders that were moved since the session began: old place -> new place.

    Returns the session's folder.
    """
    exempt_loopback_from_proxies()  # a Prefect worker starts the flow without `zk0`, in an environment of its own
    session, here = resolve_session(config, overrides or {}, resume, moved or {})
    folder = str(here.path)
    emit_progress(ProgressEvent(kind="session_started", text=folder))
    with here.locked(), session_logs(here.path):
        if resume is not None:
            here.replace_session(session)
        releasing.check_release_token(session)
        history = session_files.read_recorded_rounds(folder)
        if history and history[-1].round == final_round(session, history) and here.report.is_file():
            log_line(f"{here.name}: all {history[-1].round} rounds and the report are finished already")
        else:
            history = run_federation(session, here, history)
        release_checkpoint(session, folder, history)
    return folder


def run_federation(session: Session, here: SessionFolder, finished: tuple[RoundRecord, ...]) -> tuple[RoundRecord, ...]:
    """Run everything from the datasets to the report; return all rounds.

    Args:
        session: the settings.
        here: the session's folder.
        finished: rounds that are recorded already; none in a new session.
    """
    progress = reporting.create_session_progress(session, finished[-1].round if finished else 0)
    with tracking.tracker_runs(session, here):
        return run_tracked_rounds(session, here, finished, progress)


def run_tracked_rounds(
    session: Session, here: SessionFolder, finished: tuple[RoundRecord, ...], progress: UUID
) -> tuple[RoundRecord, ...]:
    """Run everything from the datasets to the report, while the runs of the trackers are open; return all rounds.

    Args:
        session: the settings.
        here: the session's folder.
        finished: rounds that are recorded already; none in a new session.
        progress: id of the progress bar in the UI.
    """
    from zk0.federation.open import open_federation

    folder, known = str(here.path), without_dependency(session)
    with open_federation(session, here.name, here.path, emit_step_progress):
        setup, history = prepare_session(session, here, finished)
        if history[-1].round < final_round(session, history):
            track_rounds(session, folder, history)
        setup = without_dependency(setup)
        emit_progress(ProgressEvent(kind="round_finished", round=history[-1].round, rounds=session.rounds))
        shown = None
        while history[-1].round < final_round(session, history):
            number, before = history[-1].next_round, with_dependency(history)
            if session.accepts_new_clients():
                setup = without_dependency(preparation.admit_new_clients(number, known, folder, setup))
            history = federated_round(number, known, folder, setup, before)
            shown = submit_round_artifacts(session, history, progress, shown)
            if history[-1].round < final_round(session, history):
                run_round_rollouts(session, folder, setup, history[-1])
                track_rounds(session, folder, history)  # the last round is tracked with its attempts, below
        if shown is not None:
            shown.result()
        if history == finished:  # the process was killed after the last round was recorded, maybe before its metrics
            reporting.update_metric_files(session.rounds, session, folder, history)
        if session.federation.ray_address is None:  # else no machine has all updates of a client
            rounds.send_receipts(known, folder, without_dependency(history))
        if session.evaluation.joining_report:
            evaluation.write_joining_reports(known, folder, setup, without_dependency(history))
    ended = session.model_copy(update={"rounds": history[-1].round})  # `patience` may have ended it before
    for record in history:
        run_round_rollouts(ended, folder, setup, record)
    if session.video.analysis:
        reporting.write_video_analysis(folder)
    track_rounds(session, folder, history)
    save_best_round(session, here, setup, history)
    rounds.add_attempts_to_cards(known, folder, setup, without_dependency(history))
    releasing.decide_on_release(known, folder, without_dependency(history))
    page = reporting.publish_session_report(known, folder, without_dependency(history))
    log_line(f"done: {page}")
    return history


def save_best_round(
    session: Session, here: SessionFolder, setup: "SessionSetup", history: tuple[RoundRecord, ...]
) -> None:
    """Save the policies of the best and of the last round, where that did not happen after their rounds."""
    folder = str(here.path)
    for number in session_files.unsaved_policies(without_dependency(session), folder, without_dependency(history)):
        rounds.save_round_checkpoint(session, folder, setup, history[number])


def submit_round_artifacts(
    session: Session, history: tuple[RoundRecord, ...], progress: UUID, before: PrefectFuture[None] | None
) -> PrefectFuture[None]:
    """Update the artifacts in the UI while the next round trains, one round after the other.

    Args:
        session: the settings.
        history: all finished rounds.
        progress: id of the progress bar.
        before: the update after the round before, which is waited for.
    """
    if before is not None:
        before.result()
    known = without_dependency(session)
    return reporting.update_round_artifacts.submit(history[-1].round, known, with_dependency(history), progress)


def release_checkpoint(session: Session, folder: str, history: tuple[RoundRecord, ...]) -> None:
    """Push the session's policy if the release rule, and a person if configured, allows it; update the report."""
    read_decision = releasing.decide_on_release.with_options(task_run_name="read the decision on a release")
    decided = read_decision(without_dependency(session), folder, without_dependency(history))
    if decided.outcome in ("pushed", "refused"):
        return
    if session.publish.approval:
        decided = releasing.request_approval(session, folder, decided)
    waits = list(session.publish.retry_seconds)
    try:
        if decided.outcome == "allowed":
            push = releasing.push_release.with_options(retries=len(waits), retry_delay_seconds=waits)
            push(folder, without_dependency(history[decided.round]), decided)
    finally:
        reporting.publish_session_report(without_dependency(session), folder, without_dependency(history))


def track_rounds(session: Session, folder: str, history: tuple[RoundRecord, ...]) -> None:
    """Send the finished rounds to the trackers that the session names."""
    if session.tracking.services:
        tracking.log_rounds_to_trackers(history[-1].round, folder, without_dependency(history))


def resolve_session(
    config: str, overrides: dict[str, Any], resume: str | None, moved: dict[str, str]
) -> tuple[Session, SessionFolder]:
    """Return the settings and the folder of this flow run's session: the same when Prefect runs this run again.

    Raises:
        SettingsError: a setting is invalid, or may not change when a session resumes.
        DatasetError: the metadata of datasets or policy shows faults.
    """
    moved = absolute_moves(moved, Path.cwd())
    if resume is not None:
        here = SessionFolder(folder_to_resume(resume, moved))
        session = resumed_session(here.read_session(), overrides, moved, resume, Path.cwd())
        check_strategy(session, resume)
        return session, here
    session = with_moved_folders(load_session_to_run(Path(config), overrides), moved, config)
    check_inputs(without_dependency(session))
    run = FlowRunContext.get()
    if run is None or run.flow_run is None:
        raise RuntimeError("a session runs as a Prefect flow run: call federated_session(), not its function")
    here = SessionFolder(folder_of_flow_run(run.flow_run, session))
    session_files.create_session_folder(without_dependency(session), str(here.path))
    return session, here


@task(task_run_name="check datasets and policy", cache_policy=NO_CACHE, **HUB_RETRIES)
def check_inputs(session: Session) -> None:
    """Check the metadata of datasets and policy before anything is made or downloaded for the session.

    Raises:
        DatasetError: lists every fault.
        HubUnavailable: the Hub does not respond; Prefect retries the task.
    """
    check_session_inputs(session)


def prepare_session(
    session: Session, here: SessionFolder, history: tuple[RoundRecord, ...]
) -> "tuple[SessionSetup, tuple[RoundRecord, ...]]":
    """Build the session setup, and in a new session evaluate the start policy as round 0.

    Clients join, all datasets are checked against each other, statistics are chosen. Meanwhile the policy is built.
    A resumed session must come to the setup that it started with.

    Returns the setup and all finished rounds.
    """
    from zk0.evaluation.dataset_notes import dataset_notes
    from zk0.evaluation.secure_grid import check_secure_grid
    from zk0.evaluation.session_setup import SessionSetup

    started, seconds, folder = perf_counter(), dict[str, float](), str(here.path)
    recipe, checkpoint = rounds.build_initial_policy(session, folder, history)  # worker processes import meanwhile
    with rounds.stage_timer(seconds, "check"):
        before = session_files.read_setup(folder)
        previous = before.members if before else ()
        members, sets = preparation.check_all_datasets(here.name, session, previous)
        members = preparation.check_datasets_disjoint(session, here.name, members, sets, previous)
        late = before.late_joiners if before else {}
        first_members = tuple(member for member in members if member.client not in late)
        groups = preparation.pool_statistics(session, first_members, sets)
        chosen = preparation.choose_normalization(session, recipe, groups[0].statistics, before)
    setup = SessionSetup(
        recipe=recipe,
        members=members,
        sets=sets,
        statistics=chosen.statistics,
        groups=groups if session.contract.other_groups else (),
        normalization=chosen.kind,
        normalization_reason=chosen.reason,
        dataset_notes=dataset_notes(members, sets, session.contract.joints),
        late_joiners=late,
    )
    check_secure_grid(session, members, checkpoint.bytes // 4)  # float32
    note = masking_note(session, len(members))
    for line in (*setup.dataset_notes, *([note] if note else [])):
        log_line(line)
    setup.check_groups()
    session_files.write_setup(folder, without_dependency(setup))
    if not history:
        if session.training.features != "off":
            with rounds.stage_timer(seconds, "features"):
                preparation.compute_features(without_dependency(session), folder, setup, checkpoint)
        on_server, on_clients = evaluate_round(session, folder, setup, checkpoint, seconds)
        record = RoundRecord(
            round=0,
            checkpoint=checkpoint,
            evaluation=on_server,
            client_evaluation=on_clients,
            seconds=perf_counter() - started,
            stage_seconds=seconds,
            finished_at=rounds.local_timestamp(),
        )
        history = rounds.record_round(session, folder, record)
    return setup, history


def evaluate_round(
    session: Session, folder: str, setup: "SessionSetup", checkpoint: Checkpoint, seconds: dict[str, float]
) -> tuple[Evaluation | None, ClientEvaluation | None]:
    """Evaluate the global model on the server and on the clients, in the rounds in which the session asks for it.

    Args:
        session: the settings.
        folder: the session's folder.
        setup: evaluation sets, members and statistics.
        checkpoint: the global weights.
        seconds: the duration of each stage is added here.

    Returns the evaluation on the evaluation sets and that on the clients' held-out episodes; None where not asked for.
    """
    on_server, on_clients, known = None, None, without_dependency(session)
    if session.evaluates_after(checkpoint.round):
        with rounds.stage_timer(seconds, "evaluate"):
            on_server = evaluation.evaluate_global_model(known, folder, setup, checkpoint)
    if on_server and session.renders_videos_after(checkpoint.round):
        with rounds.stage_timer(seconds, "render videos"):
            evaluation.render_episode_videos(known, folder, setup, checkpoint, on_server)
    if session.evaluates_on_clients_after(checkpoint.round):
        with rounds.stage_timer(seconds, "clients evaluate"):
            on_clients = evaluation.evaluate_on_clients(known, folder, setup, checkpoint)
    return on_server, on_clients


def run_round_rollouts(session: Session, folder: str, setup: "SessionSetup", record: RoundRecord) -> list[Rollout]:
    """Run the model of a round in closed loop on all tasks, if the session asks for it; finished attempts are read."""
    if not session.rolls_out_after(record.round):
        return []
    known = without_dependency(session)
    return [r for name in session.rollout.tasks for r in evaluation.run_rollouts(known, folder, setup, record, name)]


@task(task_run_name="round {number}", cache_policy=NO_CACHE)
def federated_round(
    number: int, session: Session, folder: str, setup: "SessionSetup", history: tuple[RoundRecord, ...]
) -> tuple[RoundRecord, ...]:
    """Run one round: decide, train, aggregate, evaluate, save, record. Return all finished rounds.

    The round is finished when it is recorded. One that is interrupted before that runs again; results that clients
    have already sent are used again.
    """
    started, seconds, before = perf_counter(), dict[str, float](), history[-1]
    decision = with_participants(decide_round(session, history), session, [member.client for member in setup.members])
    setup, known = without_dependency(setup), without_dependency(session)
    log_line(f"round {number} of {session.rounds}: {decision.reason}")
    with rounds.stage_timer(seconds, "train"):
        collect = rounds.train_clients
        if session.federation.secure:
            collect = secure_training.train_secure
        elif session.federation.mode == "buffered":
            collect = buffered_training.train_buffered
        train = collect.with_options(retries=session.federation.round_retries, retry_delay_seconds=2)
        trained = train(known, folder, setup, without_dependency(history), decision)
    with rounds.stage_timer(seconds, "aggregate"):
        last, updates = without_dependency(before), without_dependency(trained.updates)
        aggregated = rounds.aggregate_updates(known, folder, setup, last, updates)
    on_server, on_clients = evaluate_round(session, folder, setup, aggregated.checkpoint, seconds)
    record = RoundRecord(
        round=number,
        decision=decision,
        checkpoint=aggregated.checkpoint,
        updates=trained.updates,
        sent_bytes=trained.sent_bytes,
        updates_root=merkle.merkle_root([merkle.update_leaf(update) for update in trained.updates]),
        refusals=trained.refusals,
        buffered=trained.buffered,
        contributions=aggregated.contributions,
        param_update_norm=aggregated.param_update_norm,
        server_state=aggregated.server_state,
        privacy=aggregated.privacy,
        evaluation=on_server,
        client_evaluation=on_clients,
        seconds=perf_counter() - started,
        stage_seconds=seconds,
        finished_at=rounds.local_timestamp(),
    )
    if session.saves_policy_after(number):
        record = rounds.save_round_checkpoint(session, folder, setup, record)
    finished = rounds.record_round(known, folder, record)
    reporting.update_metric_files(number, known, folder, with_dependency(finished))
    emit_progress(ProgressEvent(kind="round_finished", round=number, rounds=session.rounds))
    return finished
