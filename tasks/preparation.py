"""The steps before the first round: clients join, datasets are checked against each other, statistics are chosen."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.client_task_runs import JoinTaskRuns
from tasks.events import ProgressEvent, emit_progress, log_line
from tasks.retry import HUB_RETRIES, NODE_RETRIES
from zk0.errors import DatasetError, FederationError, Zk0Error, list_problems
from zk0.records import Checkpoint, Member, PolicyRecipe, Refusal, Statistics, StatisticsGroup
from zk0.settings.dataset_settings import EvaluationSetSettings
from zk0.settings.plans import session_terms
from zk0.settings.session import Session
from zk0.storage.session_folder import SessionFolder

if TYPE_CHECKING:
    from zk0.evaluation.choose_statistics import ChosenStatistics
    from zk0.evaluation.session_setup import EvaluationSet, SessionSetup


@task(task_run_name="clients check and join", cache_policy=NO_CACHE, **HUB_RETRIES)
def join_clients(name: str, session: Session, before: Sequence[Member]) -> tuple[Member, ...]:
    """Let every client check and split its dataset; return the members, which hold what a client may publish of it.

    Args:
        name: of the session, which is that of its folder.
        session: the settings.
        before: members of a session that is resumed. With the deployment engine it continues without those that are
            missing.
    """
    from zk0.federation.open import get_federation

    emit_progress(ProgressEvent(kind="stage", text=f"{len(session.client_names()) or 'all'} clients check their data"))
    known = before if session.federation.engine == "deployment" else ()
    terms, wait_seconds = session_terms(session, name), session.federation.absence_seconds
    with JoinTaskRuns(session.tracking.client_task_runs) as runs:
        members = get_federation(name).join(terms, known, wait_seconds, runs)
    for member in members:
        train, held_out = len(member.split.train), len(member.split.held_out)
        frames = f"{train} episodes ({member.train_frames} frames), {held_out} held out"
        log_line(f"{member.client}: {member.dataset}: {frames}")
    return members


@task(task_run_name="admit new clients to round {number}", cache_policy=NO_CACHE, **NODE_RETRIES)
def admit_new_clients(number: int, session: Session, folder: str, setup: "SessionSetup") -> "SessionSetup":
    """Return the setup with the clients that take part from this round on; log why another one cannot."""
    from zk0.evaluation.dataset_agreement import check_datasets_agree
    from zk0.evaluation.dataset_notes import dataset_notes
    from zk0.federation.open import get_federation

    here, known = SessionFolder(Path(folder)), {member.client for member in setup.members}
    terms, wait_seconds = session_terms(session, here.name), session.federation.newcomer_seconds
    with JoinTaskRuns(session.tracking.client_task_runs) as runs:
        found = get_federation(here.name).join_new_nodes(terms, wait_seconds, runs)
    for member in found:
        if member.client in known or not session.takes_part(member.client, number):
            continue
        try:
            check_datasets_agree(session, (*setup.members, member), setup.sets)
            setup.statistics_of(member.report)
        except Zk0Error as e:
            log_line(f"{member.client} takes no part: {e}")
            continue
        notes = dataset_notes((*setup.members, member), setup.sets, session.contract.joints)
        for note in notes:
            if note not in setup.dataset_notes:
                log_line(note)
        setup = setup.with_late_member(member, number, notes, here.setup)
        episodes = len(member.split.train)
        log_line(f"{member.client}: {member.dataset}: {episodes} episodes; takes part from round {number} on")
    return setup


@task(task_run_name="clients compute features", cache_policy=NO_CACHE, **NODE_RETRIES)
def compute_features(session: Session, folder: str, setup: "SessionSetup", checkpoint: Checkpoint) -> None:
    """Let every client compute the features of its frames, so that the first round's time limit is for its training.

    A client that fails or is late is logged; its rounds say the rest.
    """
    from zk0.evaluation.client_plans import feature_plan
    from zk0.federation.open import get_federation

    name = SessionFolder(Path(folder)).name
    emit_progress(ProgressEvent(kind="stage", text="clients compute features of their frames"))
    plans = [feature_plan(member.client, session, name, setup, checkpoint) for member in setup.members]
    for refusal in get_federation(name).compute_features(plans):
        log_line(f"{refusal.client} computed no features: {refusal.reason}")


@task(task_run_name="check {settings.dataset}", cache_policy=NO_CACHE, **HUB_RETRIES)
def check_evaluation_set(settings: EvaluationSetSettings, session: Session) -> "EvaluationSet":
    """Check a dataset that evaluates the global model, by the same rules as a client's."""
    from zk0.evaluation.evaluation_sets import prepare_evaluation_set

    emit_progress(ProgressEvent(kind="stage", text=f"checking the evaluation set {settings.dataset}"))
    return prepare_evaluation_set(settings, session)


def check_all_datasets(
    name: str, session: Session, before: Sequence[Member]
) -> "tuple[tuple[Member, ...], tuple[EvaluationSet, ...]]":
    """Let the clients join and check every evaluation set, each in a task run of its own.

    Args: those of `join_clients`.

    Raises:
        DatasetError: names every client and every set that cannot be used, with the reason.
    """
    joined = join_clients(name, session, before, return_state=True)
    clients = joined.result(raise_on_failure=False)
    if isinstance(clients, BaseException) and not isinstance(clients, FederationError):
        raise clients
    states = [check_evaluation_set(one, session, return_state=True) for one in session.evaluation_sets()]
    found = [state.result(raise_on_failure=False) for state in states]
    problems = [str(one) for one in found if isinstance(one, Zk0Error)]
    of_clients = [str(clients)] if isinstance(clients, FederationError) else []
    if len(of_clients) + len(problems) > 1:
        title = f"{len(problems)} of {len(found)} evaluation sets cannot be used"
        raise DatasetError("\n".join([*of_clients, *([list_problems(title, problems)] if problems else [])]))
    return joined.result(), tuple(state.result() for state in states)


@task(task_run_name="check that datasets are disjoint", cache_policy=NO_CACHE)
def check_datasets_disjoint(
    session: Session, name: str, members: Sequence[Member], sets: "Sequence[EvaluationSet]", known: Sequence[Member]
) -> tuple[Member, ...]:
    """Return the members whose datasets have the session's frame rate and share no episode with another one.

    A node that does not fit is refused by name, and the session goes on while enough clients remain. Where the session
    file lists the datasets, they must all fit.

    Raises:
        DatasetError: a listed dataset does not fit, or too few clients remain.
    """
    from zk0.evaluation.dataset_agreement import agreeing_members, check_datasets_agree
    from zk0.federation.network.server import ServerFolder
    from zk0.federation.open import get_federation

    if session.federation.engine != "deployment":
        check_datasets_agree(session, members, sets)
        return tuple(members)
    enrolled = ServerFolder(Path(session.federation.server)).enrollment_order()
    agreeing, reasons = agreeing_members(session, members, sets, {member.client for member in known}, enrolled)
    get_federation(name).record_refused([Refusal(client=one, reason=why) for one, why in reasons.items()], "join", None)
    for client, reason in reasons.items():
        log_line(f"{client} takes no part: {reason}")
    if len(agreeing) < session.min_clients():
        problems = "; ".join(f"{client}: {reason}" for client, reason in reasons.items())
        raise DatasetError(f"{len(agreeing)} clients remain, expected at least {session.min_clients()}: {problems}")
    return agreeing


@task(task_run_name="pool statistics", cache_policy=NO_CACHE)
def pool_statistics(
    session: Session, members: tuple[Member, ...], sets: "Sequence[EvaluationSet]"
) -> tuple[StatisticsGroup, ...]:
    """Return the statistics of all training frames of each group of clients, the default group first.

    They are computed exactly from the clients' statistics; where `aggregation.max_share_factor` limits a client's
    share, it counts fewer frames. Without `contract.other_groups` there is one group.
    """
    from zk0.aggregation.frame_caps import capped_frames
    from zk0.evaluation.statistics_groups import pool_groups
    from zk0.report.tables.group_tables import still_joints_note

    counts = capped_frames([member.train_frames for member in members], session.aggregation.max_share_factor)
    counted = [
        m.model_copy(update={"statistics": m.statistics.with_count(n)}) for m, n in zip(members, counts, strict=True)
    ]
    groups = pool_groups(session.contract, counted, [one.report for one in sets])
    if session.contract.other_groups:
        for group in groups:
            log_line(f"statistics of {group.name}: pooled over {', '.join(group.clients)}")
    if note := still_joints_note(session, groups):
        log_line(note)
    return groups


@task(task_run_name="choose statistics", cache_policy=NO_CACHE, **HUB_RETRIES)
def choose_normalization(
    session: Session, recipe: PolicyRecipe, pooled: Statistics, before: "SessionSetup | None"
) -> "ChosenStatistics":
    """Return the statistics that normalize states and actions: the policy's, or those pooled over the clients."""
    from zk0.evaluation.choose_statistics import choose_statistics

    chosen = choose_statistics(session, recipe, pooled, before.normalization if before else None)
    log_line(f"normalization: {chosen.kind} statistics ({chosen.reason})")
    return chosen
