"""The reports of a session: artifacts in the Prefect UI; metric files, charts and report.html in its folder."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
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

from tasks.events import ProgressEvent, emit_progress, log_line
from tasks.retry import DISK_RETRIES
from zk0.errors import ReportError, may_pass
from zk0.records import Rollout, RoundRecord
from zk0.rules.release import Release
from zk0.settings.session import Session
from zk0.storage.session_folder import SessionFolder

_MIN_SECONDS_FOR_CHARTS = 60.0
"""Charts take about a second to draw: after a shorter round they are not updated, only with the report."""
_MOST_NAMES = 20
"""Of refused clients in a row of a table."""


def create_session_progress(session: Session, done: int) -> UUID:
    """Create the progress bar of this session in the UI, and return its id.

    Args:
        session: the settings.
        done: rounds that are finished; more than 0 in a resumed session.
    """
    percent, text = 100.0 * done / session.rounds, f"{session.name}: {session.rounds} rounds"
    return UUID(str(create_progress_artifact(progress=percent, key="session-progress", description=text)))


@task(task_run_name="tables round {number}", cache_policy=NO_CACHE)
def update_round_artifacts(number: int, session: Session, history: Sequence[RoundRecord], progress: UUID) -> None:
    """Update the artifacts in the UI: the progress bar, the losses of all rounds, the seconds of each stage."""
    update_progress_artifact(artifact_id=progress, progress=100.0 * number / session.rounds)
    most = session.tracking.client_task_runs
    losses, timings = align_columns([_losses(r, most) for r in history]), align_columns([_timings(r) for r in history])
    create_table_artifact(table=losses, key="round-losses", description="Losses by round")
    create_table_artifact(table=timings, key="benchmark", description="Seconds by round and stage")
    if staleness := _staleness(history, most):
        create_table_artifact(table=staleness, key="staleness", description="Staleness and waiting time of clients")


def align_columns(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with the columns of all rows, in the order of the last ones; an empty cell is None.

    The UI shows the columns of the first row only.

    >>> align_columns([{"round": 0, "reason": "start"}, {"round": 1, "arm-1": 0.5, "reason": "as set"}])
    [{'round': 0, 'arm-1': None, 'reason': 'start'}, {'round': 1, 'arm-1': 0.5, 'reason': 'as set'}]
    """
    columns = dict.fromkeys(column for row in reversed(rows) for column in row)
    return [{column: row.get(column) for column in columns} for row in rows]


def _losses(record: RoundRecord, most: int) -> dict[str, Any]:
    """Return a row of the table of losses: of each client, or mean and extremes of more than `most` clients."""
    from zk0.name_lists import join_names

    evaluation, decision = record.evaluation, record.decision
    refused = [r.client for r in record.refusals]
    of_clients = {u.client: round(u.metrics.policy_loss, 4) for u in record.updates}
    if len(of_clients) > most:
        values = of_clients.values()
        of_clients = {
            "mean of the clients": round(fmean(values), 4),
            "lowest": min(values),
            "highest": max(values),
        }
    return {
        "round": record.round,
        "policy loss (unseen)": evaluation and round(evaluation.policy_loss, 4),
        "standard error": evaluation and evaluation.policy_loss_se and round(evaluation.policy_loss_se, 4),
        "action error (degrees)": evaluation and round(evaluation.action_error_degrees, 2),
        **of_clients,
        "lr": decision and decision.lr,
        "mu": decision and decision.mu,
        "refused": join_names(refused, _MOST_NAMES) if refused else "",
        "reason": decision.reason if decision else "start",
        "digest": record.checkpoint.digest[:12],
    }


def _staleness(history: Sequence[RoundRecord], most: int) -> list[dict[str, Any]]:
    """Return a row for each client of buffered rounds; none of synchronous ones, and of more than `most` clients."""
    from zk0.report.tables.arrival_tables import waiting_table

    headings, rows = waiting_table(history).as_text()
    return [dict(zip(headings, row, strict=True)) for row in rows] if len(rows) <= most else []


def _timings(record: RoundRecord) -> dict[str, Any]:
    return {
        "round": record.round,
        "seconds": round(record.seconds, 2),
        **{stage: round(seconds, 2) for stage, seconds in record.stage_seconds.items()},
        "optimizer steps": sum(u.metrics.local_steps for u in record.updates),
    }


@task(task_run_name="metrics round {number}", cache_policy=NO_CACHE, **DISK_RETRIES)
def update_metric_files(number: int, session: Session, folder: str, history: Sequence[RoundRecord]) -> None:
    """Write the metric files, and the charts too where the round took long enough."""
    from zk0.report.metric_files import write_metric_files

    here = SessionFolder(Path(folder))
    write_metric_files(here.path, history, _rollouts_of(here, history))
    if history[-1].seconds >= _MIN_SECONDS_FOR_CHARTS:
        from zk0.report.charts.session_charts import write_round_charts

        write_round_charts(history, session.contract.units, here.path)


def _rollouts_of(here: SessionFolder, history: Sequence[RoundRecord]) -> list[Rollout]:
    """The closed-loop attempts of the models of these rounds."""
    from zk0.storage.results import read_rollouts

    digests = {record.checkpoint.digest for record in history}
    return [rollout for rollout in read_rollouts(here.rollouts_folder) if rollout.checkpoint in digests]


@task(task_run_name="analyze videos", cache_policy=NO_CACHE, **DISK_RETRIES)
def write_video_analysis(folder: str) -> None:
    """Measure the motion in the session's videos; log why that is not possible, because no result depends on it."""
    from zk0.report.video.motion_analysis import analyze_videos, has_videos

    here = SessionFolder(Path(folder))
    if not has_videos(here.rollouts_folder):
        return
    emit_progress(ProgressEvent(kind="stage", text="measuring the motion in videos"))
    try:
        found = analyze_videos(here.rollouts_folder)
    except ReportError as e:
        if may_pass(e):
            raise
        log_line(f"no analysis of the videos: {e}")
    else:
        log_line(f"motion of {len(found.videos)} videos measured, {len(found.side_by_side)} videos side by side")


@task(task_run_name="report", cache_policy=NO_CACHE, **DISK_RETRIES)
def publish_session_report(session: Session, folder: str, history: Sequence[RoundRecord]) -> str:
    """Write charts and report.html, and show the report in the UI; return the path of report.html."""
    from zk0.report.metric_files import write_metric_files
    from zk0.report.page.session_markdown import session_report_markdown
    from zk0.report.page.session_page import write_session_report
    from zk0.report.page.session_page_charts import draw_session_page_charts
    from zk0.report.setup_facts import read_setup_facts

    emit_progress(ProgressEvent(kind="stage", text="writing the report"))
    here = SessionFolder(Path(folder))
    charts = draw_session_page_charts(session, history)
    charts.write_files(here.path)
    members, rollouts = read_setup_facts(here).members, _rollouts_of(here, history)
    write_metric_files(here.path, history, rollouts)
    release = Release.read(here.release)
    text = session_report_markdown(
        session=session, members=members, history=history, rollouts=rollouts, charts=charts, release=release
    )
    create_markdown_artifact(markdown=text, key="session-report", description=str(here.report))
    write_session_report(
        here.report,
        session=session,
        members=members,
        history=history,
        rollouts=rollouts,
        charts=charts,
        folder=here.path,
        session_toml=here.session_toml.read_text(encoding="utf-8"),
    )
    return str(here.report)
