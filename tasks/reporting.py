"""What people look at: artifacts in the Prefect UI, charts, tables and the report in the session's folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE

from tasks.events import Event, tell
from zk0.folder import SessionFolder
from zk0.records import RoundRecord
from zk0.release import Release
from zk0.session import Session

_CHARTS_SECONDS = 60.0
"""Drawing takes about a second: rounds that are shorter leave it to the report."""


def start_progress(session: Session, done: int) -> UUID:
    """The progress bar of this session in the UI; one that is taken up starts where it was."""
    share, text = 100.0 * done / session.rounds, f"{session.name}: {session.rounds} rounds"
    found = create_progress_artifact(progress=share, key="session-progress", description=text)
    tell(Event(kind="round", round=done, rounds=session.rounds))
    return UUID(str(found))


@task(task_run_name="tables round {number}", cache_policy=NO_CACHE)
def show_rounds(number: int, rounds: int, history: Sequence[RoundRecord], progress: UUID) -> None:
    """How far the session is, losses of all rounds, and where the time went, as artifacts in the UI."""
    update_progress_artifact(artifact_id=progress, progress=100.0 * number / rounds)
    losses, timings = aligned([_losses(r) for r in history]), aligned([_timings(r) for r in history])
    create_table_artifact(table=losses, key="round-losses", description="Losses by round")
    create_table_artifact(table=timings, key="benchmark", description="Seconds by round and stage")


def aligned(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that all have the columns of any, in the order of the last rows: the UI shows those of the first row alone.

    >>> aligned([{"round": 0, "why": "start"}, {"round": 1, "arm-1": 0.5, "why": "as set"}])
    [{'round': 0, 'arm-1': None, 'why': 'start'}, {'round': 1, 'arm-1': 0.5, 'why': 'as set'}]
    """
    columns = dict.fromkeys(column for row in reversed(rows) for column in row)
    return [{column: row.get(column) for column in columns} for row in rows]


def _losses(record: RoundRecord) -> dict[str, Any]:
    judged, decided = record.evaluation, record.decision
    return {
        "round": record.round,
        "policy loss (unseen)": judged and round(judged.policy_loss, 4),
        "standard error": judged and judged.policy_loss_se and round(judged.policy_loss_se, 4),
        "action error (degrees)": judged and round(judged.action_error_degrees, 2),
        **{u.client: round(u.metrics.policy_loss, 4) for u in record.updates},
        "lr": decided and decided.lr,
        "mu": decided and decided.mu,
        "refused": ", ".join(r.client for r in record.refusals),
        "why": decided.reason if decided else "start",
        "digest": record.checkpoint.digest[:12],
    }


def _timings(record: RoundRecord) -> dict[str, Any]:
    frames = sum(u.metrics.local_steps for u in record.updates)
    return {
        "round": record.round,
        "seconds": round(record.seconds, 2),
        **{stage: round(seconds, 2) for stage, seconds in record.stage_seconds.items()},
        "optimizer steps": frames,
    }


@task(task_run_name="metrics round {number}", cache_policy=NO_CACHE)
def write_metrics(number: int, session: Session, folder: str, history: Sequence[RoundRecord]) -> None:
    """Metric files, brought up to date after each round; charts too, where the round took much longer than they do."""
    from zk0.report.metrics import write_metrics as write

    here = SessionFolder(Path(folder))
    write(here.path, history)
    if history[-1].seconds >= _CHARTS_SECONDS:
        _draw(here, session, history)


def _draw(here: SessionFolder, session: Session, history: Sequence[RoundRecord]) -> None:
    from zk0.report.chart import action_error_chart, federated_metrics_chart, policy_loss_chart

    policy_loss_chart(history, here.path / "policy_loss_chart.png")
    action_error_chart(history, session.contract.units, here.path / "action_error_chart.png")
    federated_metrics_chart(history, here.path / "federated_metrics.png")


@task(task_run_name="report", cache_policy=NO_CACHE)
def write_report(session: Session, folder: str, history: Sequence[RoundRecord]) -> str:
    """The report as a page in the session's folder and as an artifact in the UI; the page's path."""
    from zk0.report.kept import kept_members
    from zk0.report.page import report_markdown
    from zk0.report.page import write_report as write
    from zk0.results import read_rollouts

    tell(Event(kind="stage", text="writing the report"))
    here = SessionFolder(Path(folder))
    _draw(here, session, history)
    members, models = kept_members(here), {record.checkpoint.digest for record in history}
    rollouts = [r for r in read_rollouts(here.path / "evaluate") if r.checkpoint in models]
    release = Release.read(here.release)
    text = report_markdown(session=session, members=members, history=history, rollouts=rollouts, release=release)
    create_markdown_artifact(markdown=text, key="session-report", description=str(here.report))
    write(
        here.report,
        session=session,
        members=members,
        history=history,
        rollouts=rollouts,
        folder=here.path,
        session_toml=here.session_toml.read_text(encoding="utf-8"),
    )
    return str(here.report)
