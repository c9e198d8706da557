"""HTML report of a session: one self-contained page with charts, tables and videos."""

import shlex
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

from zk0.audit.ledger import Ledger
from zk0.errors import ReportError
from zk0.records import EpisodeVideo, Member, Record, Rollout, RoundRecord
from zk0.report.charts.cross_task_matrix import matrix_table
from zk0.report.charts.footnotes import evaluation_settings_note
from zk0.report.conclusions import conclusions_with_policy, success_sentence
from zk0.report.key_results import key_results, session_subtitle, stage_time_shares
from zk0.report.metrics import sorted_by_round
from zk0.report.next_commands import next_commands
from zk0.report.page.session_page_charts import SessionPageCharts
from zk0.report.page.template import render_template
from zk0.report.palette import DARK_THEME, LIGHT_THEME, css_variables
from zk0.report.policy_text import policy_text
from zk0.report.setup_facts import RecipeFacts, read_setup_facts
from zk0.report.tables import arrival_tables, client_tables, rollout_tables, round_tables, score_tables, sum_tables
from zk0.report.tables.group_tables import group_table, statistics_table, still_joints_note
from zk0.report.tables.improvement_table import improvement_table
from zk0.report.tables.table import Table
from zk0.report.video.poster import last_frame_jpeg
from zk0.rules.masking_note import masking_note
from zk0.rules.release import Release
from zk0.rules.selection import select_round
from zk0.settings.session import Session
from zk0.storage.atomic import atomic_write_bytes
from zk0.storage.redaction import public_name
from zk0.storage.results import read_episode_videos
from zk0.storage.session_folder import SessionFolder


class InlineRollout(Record):
    """One closed-loop attempt with its video and the video's last frame as data URIs, or None if there is no video."""

    rollout: Rollout
    video: str | None
    poster: str | None


class InlineEpisode(Record):
    """One recorded episode with the video of its predictions and its last frame as data URIs, or None without one."""

    episode: EpisodeVideo
    video: str | None
    poster: str | None


def write_session_report(
    path: Path,
    *,
    session: Session,
    members: Sequence[Member],
    history: Sequence[RoundRecord],
    rollouts: Sequence[Rollout],
    charts: SessionPageCharts,
    folder: Path,
    session_toml: str,
) -> None:
    """Write report.html, one file that loads no other.

    Args:
        path: of the page.
        session: its settings.
        members: the clients.
        history: the rounds of the ledger.
        rollouts: the closed-loop attempts.
        charts: of these rounds.
        folder: of the session; videos, pooled statistics, ledger root and release record are read from it.
        session_toml: the settings as text.

    Raises:
        ReportError: a source cannot be read, or the page cannot be written.
    """
    rows = sorted_by_round(history)
    here = SessionFolder(folder)
    setup = read_setup_facts(here) if here.setup.is_file() else None
    policy_type = (setup.recipe if setup else RecipeFacts()).type
    groups = setup.statistics_groups(session.contract.units) if setup else ()
    attempts = [InlineRollout(rollout=r, **_data_uris(folder, r)) for r in rollouts if r.video or r.video_error]
    page = render_template(
        "session_page.html.j2",
        session=session,
        conclusions=conclusions_with_policy(session, rows, rollouts),
        key_results=key_results(session, members, rows, rollouts),
        subtitle=session_subtitle(session, rows, policy_type),
        policy_loss=policy_text(policy_type).loss,
        charts=charts.by_round,
        joint_chart=charts.joints,
        matrix_chart=charts.matrix,
        stage_shares=stage_time_shares(rows),
        evaluation_settings=evaluation_settings_note(rows),
        tables=_tables(session, members, rows, rollouts)
        | {"statistics": statistics_table(session, groups), "groups": group_table(groups)},
        masking_note=masking_note(session, len(members)),
        dataset_notes=setup.dataset_notes if setup else (),
        normalization=setup.normalization_sentence if setup else "",
        still_joints=still_joints_note(session, groups),
        episodes=[InlineEpisode(episode=e, **_data_uris(folder, e)) for e in _unseen_episode_videos(here)],
        rollouts=attempts,
        before_and_after=_before_and_after(attempts, select_round(session, rows, rollouts).round if rows else None),
        next_commands=next_commands(here, session, rows, rollouts),
        success_sentence=success_sentence(rollouts),
        release=Release.read(here.release),
        public_name=public_name,
        rerun_command=f"zk0 run --from {shlex.quote(str(folder))}",
        resume_command=f"zk0 run --resume {shlex.quote(str(folder))}",
        ledger_root=Ledger(here.ledger).root() if here.ledger.is_file() else None,
        session_toml=session_toml,
        light=css_variables(LIGHT_THEME),
        dark=css_variables(DARK_THEME),
    )
    atomic_write_bytes(path, page.encode(), durable=False, error=ReportError)


def _tables(
    session: Session, members: Sequence[Member], rows: Sequence[RoundRecord], rollouts: Sequence[Rollout]
) -> dict[str, Table]:
    return {
        "clients": client_tables.client_table(members, rows),
        "client_rounds": client_tables.client_round_table(rows),
        "rounds": round_tables.round_table(session, rows),
        "times": round_tables.time_table(rows),
        "refusals": round_tables.refusal_table(rows),
        "waiting": arrival_tables.waiting_table(rows),
        "arrivals": arrival_tables.arrival_table(rows),
        "sums": sum_tables.sum_table(rows),
        "findings": client_tables.finding_table(members),
        "matrix": matrix_table(rows),
        "evaluation_refusals": round_tables.evaluation_refusal_table(rows),
        "improvements": improvement_table(session, rows),
        "sets": score_tables.evaluation_set_table(session, rows),
        "tasks": rollout_tables.task_table(rollouts),
        "attempts": rollout_tables.attempt_table(rollouts),
        "joints": score_tables.joint_table(session, rows),
        "digests": round_tables.digest_table(rows),
    }


def _unseen_episode_videos(here: SessionFolder) -> list[EpisodeVideo]:
    """Videos of the server's evaluation sets; those of held-out episodes stay with their clients."""
    return [video for video in read_episode_videos(here.rollouts_folder) if video.client is None]


def _before_and_after(
    attempts: Sequence[InlineRollout], policy_round: int | None
) -> tuple[tuple[str, InlineRollout], ...]:
    """The same attempt with the first model and now, with titles: where possible one that succeeds only now.

    Now is the round of the session's policy, or the last round if that has no video. Empty without videos of both.
    """
    shown = [one for one in attempts if one.video and one.rollout.round is not None]
    rounds = sorted({one.rollout.round for one in shown if one.rollout.round is not None})
    if len(rounds) < 2:
        return ()
    before, now = (
        {(one.rollout.task, one.rollout.seed): one for one in shown if one.rollout.round == number}
        for number in (rounds[0], policy_round if policy_round in rounds[1:] else rounds[-1])
    )
    pairs = [(before[key], now[key]) for key in before if key in now]
    if not pairs:
        return ()
    first, last = max(pairs, key=lambda pair: (pair[1].rollout.success, not pair[0].rollout.success))
    return (("before training" if rounds[0] == 0 else "before", first), ("now", last))


def _data_uris(folder: Path, result: Rollout | EpisodeVideo) -> dict[str, str | None]:
    """The fields `video` and `poster`."""
    if result.video is None:
        return {"video": None, "poster": None}
    path = folder / result.video
    try:
        video = _data_uri("video/mp4", path.read_bytes())
    except FileNotFoundError:
        return {"video": None, "poster": None}
    except OSError as e:
        raise ReportError(f"{path}: cannot be read ({e.strerror}); expected a video of the session") from e
    poster = last_frame_jpeg(path)
    return {"video": video, "poster": None if poster is None else _data_uri("image/jpeg", poster)}


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"
