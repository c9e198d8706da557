"""The report of a session: one page that needs nothing but itself, and the same as Markdown."""

import json
import shlex
from base64 import b64encode
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from zk0.errors import ReportError
from zk0.folder import SessionFolder
from zk0.ledger import Ledger
from zk0.public import public_name
from zk0.records import EpisodeFilm, Member, Record, Rollout, RoundRecord, Statistics
from zk0.release import Release
from zk0.report import client_tables, rollout_tables, round_tables, score_tables
from zk0.report.chart import action_error_round_figure, federated_metrics_figure, measured_under, policy_loss_figure
from zk0.report.error_chart import action_error_figure
from zk0.report.fall_table import fall_table
from zk0.report.inline import Chart, data_png, inlined
from zk0.report.key_figures import key_figures, subtitle, time_shares
from zk0.report.markdown import escaped, table
from zk0.report.matrix import matrix_figure, matrix_table
from zk0.report.metrics import ordered
from zk0.report.palette import DARK, LIGHT, css_variables
from zk0.report.template import render
from zk0.report.verdict import success_sentence, verdict
from zk0.report.write import write_bytes
from zk0.results import read_films
from zk0.session import Session


class Film(Record):
    """One closed-loop attempt; the video as a data URI, or None where there is none."""

    rollout: Rollout
    video: str | None


class EpisodeShown(Record):
    """One recorded episode, predicted beside recorded; the video as a data URI, or None where there is none."""

    film: EpisodeFilm
    video: str | None


def write_report(
    path: Path,
    *,
    session: Session,
    members: Sequence[Member],
    history: Sequence[RoundRecord],
    rollouts: Sequence[Rollout],
    folder: Path,
    session_toml: str,
) -> None:
    """Write report.html: charts, tables and videos in one file that asks for no other.

    Videos are read from `folder / rollout.video`; pooled statistics, the ledger's root and what was decided about a
    release come from `folder` too.

    Raises:
        ReportError: the page or one of its sources cannot be read or written.
    """
    rows = ordered(history)
    here = SessionFolder(folder)
    statistics = _pooled(here)
    page = render(
        "page.html.j2",
        session=session,
        verdict=verdict(rows, rollouts),
        key_figures=key_figures(session, members, rows, rollouts),
        subtitle=subtitle(session, rows),
        charts=_charts(rows, session.contract.units, loss_text=verdict(rows, ()).sentences[0]),
        errors=_errors(session, rows),
        matrix=inlined(
            partial(matrix_figure, rows, session.normalization),
            "Heat map of the loss of every task under the global model of every judged round; the table below has the "
            "numbers.",
        ),
        shares=time_shares(rows),
        measured=measured_under(rows),
        tables={
            "clients": client_tables.client_table(members, rows),
            "work": client_tables.work_table(rows),
            "rounds": round_tables.round_table(session, rows),
            "times": round_tables.time_table(rows),
            "refusals": round_tables.refusal_table(rows),
            "findings": client_tables.finding_table(members),
            "matrix": matrix_table(rows),
            "unjudged": round_tables.unjudged_table(rows),
            "falls": fall_table(session, rows),
            "sets": score_tables.set_table(session, rows),
            "tasks": rollout_tables.task_table(rollouts),
            "attempts": rollout_tables.attempt_table(rollouts),
            "joints": score_tables.joint_table(session, rows),
            "statistics": client_tables.statistics_table(session, statistics),
            "digests": round_tables.digest_table(rows),
        },
        episode_films=[EpisodeShown(film=f, video=_video(folder, f)) for f in _unseen_films(here)],
        films=[Film(rollout=r, video=_video(folder, r)) for r in rollouts if r.video or r.video_fault],
        closed_loop=success_sentence(rollouts),
        release=Release.read(here.release),
        public_name=public_name,
        resume=f"zk0 run --resume {shlex.quote(str(folder))}",
        ledger_root=Ledger(here.ledger).root() if here.ledger.is_file() else None,
        session_toml=session_toml,
        light=css_variables(LIGHT),
        dark=css_variables(DARK),
    )
    write_bytes(path, page.encode())


def report_markdown(
    *,
    session: Session,
    members: Sequence[Member],
    history: Sequence[RoundRecord],
    rollouts: Sequence[Rollout],
    release: Release | None = None,
) -> str:
    """The report in short, in GitHub's Markdown with the charts inside; well below 1 MB."""
    rows = ordered(history)
    found = verdict(rows, rollouts)
    keys = [(k.title, k.text, k.note) for k in key_figures(session, members, rows, rollouts)]
    parts = [
        f"# {escaped(session.name)}",
        f"**{escaped(found.headline)}**",
        "\n\n".join(escaped(s) for s in found.sentences),
        *([f"Release: {escaped(release.told())}."] if release else []),
        table(("figure", "value", ""), keys),
        f"![Policy loss on unseen data by round]({data_png(policy_loss_figure(rows), 100)})",
        "## Rounds",
        table(*round_tables.round_table(session, rows).plain()),
        "## Clients",
        table(*client_tables.client_table(members, rows).plain()),
        f"![Clients, schedule and action error by round]({data_png(federated_metrics_figure(rows), 80)})",
    ]
    refused = round_tables.refusal_table(rows)
    if refused.rows:
        parts += ["## Refused updates", table(*refused.plain())]
    return "\n\n".join(parts) + "\n"


def _charts(rows: Sequence[RoundRecord], units: str, loss_text: str) -> list[Chart]:
    panels = (
        "Client and held-out losses, learning rate, size of the updates, their cosines to the mean, mu, parts of the "
        "global step, leave-one-out and proximal loss by round"
    )
    return [
        inlined(partial(policy_loss_figure, rows), f"Line chart by round. {loss_text}"),
        inlined(partial(action_error_round_figure, rows, units), "Action error on unseen data by round."),
        inlined(partial(federated_metrics_figure, rows), f"{panels}; the numbers are in the tables below."),
    ]


def _errors(session: Session, rows: Sequence[RoundRecord]) -> Chart:
    scores = [s for r in rows if r.evaluation for s in r.evaluation.sets]
    joints = score_tables.joint_names(session, len(scores[0].joint_error_degrees) if scores else 0)
    draw = partial(action_error_figure, rows, joints, session.contract.units)
    return inlined(draw, "Action error by joint and by step of the chunk; the joints' numbers are in the table below.")


def _unseen_films(here: SessionFolder) -> list[EpisodeFilm]:
    """Of the sets that the server judges on; what clients hold out stays with them, on film too."""
    return [film for film in read_films(here.path / "evaluate") if film.client is None]


def _video(folder: Path, filmed: Rollout | EpisodeFilm) -> str | None:
    if filmed.video is None:
        return None
    path = folder / filmed.video
    try:
        return f"data:video/mp4;base64,{b64encode(path.read_bytes()).decode()}"
    except FileNotFoundError:
        return None
    except OSError as e:
        raise ReportError(f"{path}: cannot be read ({e.strerror}); expected a video of the session") from e


def _pooled(here: SessionFolder) -> Statistics | None:
    """The pooled statistics that the session wrote down, or None where it did not."""
    try:
        return Statistics.model_validate(json.loads(here.ground.read_text(encoding="utf-8"))["statistics"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as e:
        raise ReportError(f"{here.ground}: no pooled statistics can be read from it ({e}); expected them") from e
