"""Data: who joins, what judges, and the proof that the two do not meet."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.events import Event, say, tell
from tasks.retry import is_transient
from zk0.errors import Zk0Error
from zk0.folder import SessionFolder
from zk0.records import Member, Statistics
from zk0.session import EvaluationSetSettings, Session, terms_of
from zk0.split import assert_disjoint

if TYPE_CHECKING:
    from zk0.training.judge import EvaluationSet, Ground


@task(
    task_run_name="clients check and join",
    cache_policy=NO_CACHE,
    retries=1,
    retry_delay_seconds=5,
    retry_condition_fn=is_transient,
)
def join_clients(name: str, session: Session, before: Sequence[Member]) -> tuple[Member, ...]:
    """Every client checks and splits its data set and says what may be said of it.

    `before` are those of a session that is taken up; where nodes come and go, it goes on without who is missing.
    """
    from zk0.federation.open import federation

    tell(Event(kind="stage", text=f"{len(session.client_names()) or 'all'} clients check their data"))
    comes_and_goes = session.federation.engine == "deployment" and not session.federation.nodes
    remembered = before if comes_and_goes else ()
    members = federation(name).join(terms_of(session, name), remembered, session.federation.absence_seconds)
    for member in members:
        split = (
            f"{len(member.split.train)} episodes ({member.train_frames} frames), {len(member.split.held_out)} held out"
        )
        say(f"{member.client}: {member.dataset}: {split}")
    return members


@task(
    task_run_name="welcome newcomers to round {number}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=5,
    retry_condition_fn=is_transient,
)
def welcome_newcomers(number: int, session: Session, folder: str, ground: "Ground") -> "Ground":
    """The ground with clients that take part from this round on; one that cannot is told why, and no loss."""
    from zk0.federation.open import federation

    here, known = SessionFolder(Path(folder)), {member.client for member in ground.members}
    joined = federation(here.name).welcome(terms_of(session, here.name), session.federation.newcomer_seconds)
    for member in joined:
        if member.client in known or not session.is_due(member.client, number):
            continue
        try:
            _agree(session, (*ground.members, member), ground.sets)
        except Zk0Error as e:
            say(f"{member.client} takes no part: {e}")
            continue
        ground = ground.with_newcomers([member], number, here.ground)
        say(f"{member.client}: {member.dataset}: {len(member.split.train)} episodes; takes part from round {number} on")
    return ground


@task(task_run_name="check {settings.dataset}", cache_policy=NO_CACHE)
def check_evaluation_set(settings: EvaluationSetSettings, session: Session) -> "EvaluationSet":
    """A data set that judges, checked like a client's."""
    from zk0.training.judge import prepare_evaluation_set

    tell(Event(kind="stage", text=f"checking {settings.dataset}, which judges"))
    return prepare_evaluation_set(settings, session)


@task(task_run_name="prove disjointness", cache_policy=NO_CACHE)
def prove_agreement(session: Session, members: Sequence[Member], sets: "Sequence[EvaluationSet]") -> None:
    """One frame rate everywhere, and no episode in two places."""
    _agree(session, members, sets)


def _agree(session: Session, members: Sequence[Member], sets: "Sequence[EvaluationSet]") -> None:
    from zk0.robot.check import check_same_rate

    reports = {m.client: m.report for m in members} | {s.dataset: s.report for s in sets}
    check_same_rate(reports, session.contract)
    places = {f"training data of {m.client} ({m.dataset})": m.train_digests for m in members}
    assert_disjoint({**places, **{f"evaluation set {s.dataset}": s.digests for s in sets}})


@task(task_run_name="pool statistics", cache_policy=NO_CACHE)
def pool_statistics(members: tuple[Member, ...]) -> Statistics:
    """The statistics of all training frames together, from the clients' moments."""
    from zk0.robot.statistics import pool

    return pool([member.statistics for member in members])
