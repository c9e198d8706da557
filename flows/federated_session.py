"""One federated session, whole: data in, rounds until they are done, judged, filmed, reported."""

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

from flows.taking_up import begun_in, named
from tasks import data, judging, releasing, reporting, rounds, tracking
from tasks.crash import close_task_runs
from tasks.events import Event, say, tell, tell_step
from tasks.logs import session_logs
from zk0 import merkle
from zk0.errors import SettingsError
from zk0.folder import SessionFolder
from zk0.participation import with_participants
from zk0.records import Checkpoint, ClientEvaluation, Evaluation, Rollout, RoundRecord
from zk0.schedule import decide
from zk0.session import Session, load_session

if TYPE_CHECKING:
    from zk0.training.judge import Ground


def run_name() -> str:
    """What a run is called in the UI: its session file, or the folder that it takes up."""
    asked = flow_run.parameters
    return Path(asked.get("resume") or asked.get("config") or "session").stem


def untracked[T](value: T) -> T:
    """The same value, but Prefect draws no arrow for it and does not walk through it."""
    return cast(T, quote(value))


def linked[T](value: T) -> T:
    """The same value with an arrow from where it was made, but no walk through it: history makes the chain."""
    return cast(T, opaque(value))


@flow(
    name="zk0",
    flow_run_name=run_name,
    persist_result=False,
    on_crashed=[close_task_runs],
    on_cancellation=[close_task_runs],
)
def federated_session(
    config: str = "deployments/sessions/demo.toml", overrides: dict[str, Any] | None = None, resume: str | None = None
) -> str:
    """Train one policy on data that stays where it is.

    Args:
        config: a session file, from the directory the worker runs in.
        overrides: settings by dotted name that replace those of the file, such as {"rounds": 5, "training.lr": 3e-4}.
        resume: the folder of a session to take up after its last finished round, or the id of the flow run that worked
            in it; `config` is then ignored.

    Returns the session's folder.
    """
    session, here = settle(config, overrides, resume)
    folder = str(here.path)
    tell(Event(kind="begun", text=folder))
    with here.alone(), session_logs(here.path):
        releasing.check_ready(session)
        history = rounds.take_up(folder)
        if history and history[-1].round == session.rounds and here.report.is_file():
            say(f"{here.name}: all {session.rounds} rounds and the report are there already")
        else:
            history = carry_out(session, here, history)
        release(session, folder, history)
    return folder


def carry_out(session: Session, here: SessionFolder, finished: tuple[RoundRecord, ...]) -> tuple[RoundRecord, ...]:
    """Everything from the data to the report; the finished rounds."""
    from zk0.federation.open import open_federation

    folder, known = str(here.path), untracked(session)
    with open_federation(session, here.name, here.path, tell_step), tracking.tracked(session, here):
        ground, history = prepare(session, here, finished)
        track(session, here.name, history)
        ground = untracked(ground)
        progress, shown = reporting.start_progress(session, history[-1].round), None
        while history[-1].round < session.rounds:
            number, before = history[-1].next_round, linked(history)
            if session.may_grow():
                ground = untracked(data.welcome_newcomers(number, known, folder, ground))
            history = federated_round(number, known, folder, ground, before)
            shown = show(session.rounds, history, progress, shown)
            track(session, here.name, history)
            if history[-1].round < session.rounds:
                roll_out(session, folder, ground, history[-1])
        if shown is not None:
            shown.result()
        if history == finished:  # killed after its last round was recorded, maybe before it was drawn
            reporting.write_metrics(session.rounds, session, folder, history)
        rounds.give_receipts(known, folder, untracked(history))
        if session.evaluation.joining_report:
            judging.report_joining(known, folder, ground, untracked(history))
    for record in history:
        roll_out(session, folder, ground, record)
    releasing.decide(known, folder, untracked(history))
    page = reporting.write_report(known, folder, untracked(history))
    say(f"done: {page}")
    return history


def show(
    rounds: int, history: tuple[RoundRecord, ...], progress: UUID, before: PrefectFuture[None] | None
) -> PrefectFuture[None]:
    """Bring what the UI shows up to date while the next round trains, one round after the other."""
    if before is not None:
        before.result()
    return reporting.show_rounds.submit(history[-1].round, rounds, linked(history), progress)


def release(session: Session, folder: str, history: tuple[RoundRecord, ...]) -> None:
    """What the rule allows, and a person if one is to be asked, is pushed; the report then says so."""
    look_up = releasing.decide.with_options(task_run_name="what was decided on a release")
    decided = look_up(untracked(session), folder, untracked(history))
    if decided.outcome in ("pushed", "refused"):
        return
    if session.publish.approval:
        decided = releasing.ask(session, folder, decided)
    waits = list(session.publish.retry_seconds)
    try:
        if decided.outcome == "allowed":
            pushing = releasing.push.with_options(retries=len(waits), retry_delay_seconds=waits)
            pushing(folder, untracked(history[-1]), decided)
    finally:
        reporting.write_report(untracked(session), folder, untracked(history))


def track(session: Session, name: str, history: tuple[RoundRecord, ...]) -> None:
    """The rounds so far to Weights & Biases, if asked for."""
    if session.tracking.wandb != "off":
        tracking.track(history[-1].round, name, untracked(history))


def settle(config: str, overrides: dict[str, Any] | None, resume: str | None) -> tuple[Session, SessionFolder]:
    """What is asked for, and the folder it is done in: the same one when Prefect runs this run again."""
    if resume is not None:
        if overrides:
            raise SettingsError(
                f"{resume}: a session is taken up with its own settings; found overrides {sorted(overrides)}"
            )
        here = SessionFolder(named(resume))
        return here.session(), here
    session = load_session(Path(config), overrides).at(Path.cwd())
    run = FlowRunContext.get()
    if run is None or run.flow_run is None:
        raise RuntimeError("a session runs as a Prefect flow run: call federated_session(), not its function")
    here = SessionFolder(begun_in(run.flow_run, session))
    here.create(session)
    return session, here


def prepare(
    session: Session, here: SessionFolder, history: tuple[RoundRecord, ...]
) -> "tuple[Ground, tuple[RoundRecord, ...]]":
    """Clients and judges checked and proved disjoint, statistics pooled, round 0 in the ledger."""
    from zk0.training.judge import Ground

    started, seconds = perf_counter(), dict[str, float]()
    recipe, checkpoint = rounds.start_policy(session, str(here.path), history)  # while workers import what they need
    with rounds.timed(seconds, "check"):
        before = Ground.kept_in(here.ground)
        members = data.join_clients(here.name, session, before.members if before else ())
        sets = tuple(data.check_evaluation_set(one, session) for one in session.judges())
        data.prove_agreement(session, members, sets)
        late = before.late if before else {}
        statistics = data.pool_statistics(tuple(member for member in members if member.client not in late))
    ground = Ground(recipe=recipe, members=members, sets=sets, statistics=statistics, late=late)
    ground.keep(here.ground)
    if not history:
        judged, by_clients = judge(session, str(here.path), ground, checkpoint, seconds)
        record = RoundRecord(
            round=0,
            checkpoint=checkpoint,
            evaluation=judged,
            client_evaluation=by_clients,
            seconds=perf_counter() - started,
            stage_seconds=seconds,
            finished_at=rounds.now(),
        )
        history = rounds.finish_round(session, str(here.path), record)
    return ground, history


def judge(
    session: Session, folder: str, ground: "Ground", checkpoint: Checkpoint, seconds: dict[str, float]
) -> tuple[Evaluation | None, ClientEvaluation | None]:
    """The global model on unseen data and on what clients hold out, in the rounds that ask for it."""
    judged, by_clients, known = None, None, untracked(session)
    if session.judged_after(checkpoint.round):
        with rounds.timed(seconds, "evaluate"):
            judged = judging.evaluate(known, folder, ground, checkpoint)
    if judged and session.filmed_after(checkpoint.round):
        with rounds.timed(seconds, "film"):
            judging.film(known, folder, ground, checkpoint, judged)
    if session.clients_judge_after(checkpoint.round):
        with rounds.timed(seconds, "clients evaluate"):
            by_clients = judging.evaluate_on_clients(known, folder, ground, checkpoint)
    return judged, by_clients


def roll_out(session: Session, folder: str, ground: "Ground", record: RoundRecord) -> list[Rollout]:
    """The model of a round in closed loop, if its turn has come; attempts that lie there already are only read."""
    if not session.rolled_out_after(record.round):
        return []
    return [
        r for name in session.rollout.tasks for r in judging.roll_out(untracked(session), folder, ground, record, name)
    ]


@task(task_run_name="round {number}", cache_policy=NO_CACHE)
def federated_round(
    number: int, session: Session, folder: str, ground: "Ground", history: tuple[RoundRecord, ...]
) -> tuple[RoundRecord, ...]:
    """Decide, train, average, judge, keep, record: after the last step the round is finished, before it nothing is."""
    started, seconds, before = perf_counter(), dict[str, float](), history[-1].checkpoint
    decision = with_participants(decide(session, history), session, [member.client for member in ground.members])
    ground, known = untracked(ground), untracked(session)
    say(f"round {number} of {session.rounds}: {decision.reason}")
    with rounds.timed(seconds, "train"):
        retried = rounds.train_clients.with_options(retries=session.federation.round_retries, retry_delay_seconds=2)
        trained = retried(known, folder, ground, before, decision)
    with rounds.timed(seconds, "aggregate"):
        averaged = rounds.aggregate_updates(known, folder, ground, untracked(history[-1]), untracked(trained.updates))
    judged, by_clients = judge(session, folder, ground, averaged.checkpoint, seconds)
    record = RoundRecord(
        round=number,
        decision=decision,
        checkpoint=averaged.checkpoint,
        updates=trained.updates,
        sent_bytes=trained.sent_bytes,
        updates_root=merkle.root([merkle.leaf(update) for update in trained.updates]),
        refusals=trained.refusals,
        contributions=averaged.contributions,
        param_update_norm=averaged.param_update_norm,
        server_state=averaged.server_state,
        privacy=averaged.privacy,
        evaluation=judged,
        client_evaluation=by_clients,
        seconds=perf_counter() - started,
        stage_seconds=seconds,
        finished_at=rounds.now(),
    )
    interval = session.checkpoint_interval
    if number == session.rounds or (interval and number % interval == 0):
        rounds.save_checkpoint(session, folder, ground, record)
    finished = rounds.finish_round(known, folder, record)
    reporting.write_metrics(number, known, folder, linked(finished))
    tell(Event(kind="round", round=number, rounds=session.rounds))
    return finished
