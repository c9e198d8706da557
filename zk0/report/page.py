"""The report of a session: one page that needs nothing but itself, and the same as Markdown."""

import json
import shlex
from base64 import b64encode
from collections.abc import Callable, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from zk0.errors import ReportError
from zk0.folder import SessionFolder
from zk0.ledger import Ledger
from zk0.records import Member, Record, Rollout, RoundRecord, Statistics
from zk0.report import tables
from zk0.report.chart import federated_metrics_figure, measured_under, policy_loss_figure
from zk0.report.figures import DASH, count, duration, fixed, megabytes, percent, plus_minus
from zk0.report.lines import png
from zk0.report.markdown import escaped, table
from zk0.report.metrics import ordered
from zk0.report.palette import DARK, LIGHT, Theme, css_variables
from zk0.report.verdict import success_sentence, verdict, wilson
from zk0.report.write import write_bytes
from zk0.session import Session

_HERE = Path(__file__).parent


class KeyFigure(Record):
    """One number that sums a session up."""

    title: str
    value: str
    note: str


class Chart(Record):
    """One chart for light and for dark surroundings, as data URIs."""

    title: str
    light: str
    dark: str
    text: str
    """What a reader who cannot see it is told."""


class Film(Record):
    """One closed-loop attempt; the video as a data URI, or None where there is none."""

    rollout: Rollout
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

    Videos are read from `folder / rollout.video`; pooled statistics and the ledger's root come from `folder` too.

    Raises:
        ReportError: the page or one of its sources cannot be read or written.
    """
    rows = ordered(history)
    here = SessionFolder(folder)
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("page.html.j2").render(
        session=session,
        verdict=verdict(rows, rollouts),
        key_figures=_key_figures(session, members, rows, rollouts),
        charts=_charts(rows),
        measured=measured_under(rows),
        tables={
            "clients": tables.client_table(members, rows),
            "rounds": tables.round_table(session, rows),
            "times": tables.time_table(rows),
            "refusals": tables.refusal_table(rows),
            "findings": tables.finding_table(members),
            "sets": tables.set_table(session, rows),
            "joints": tables.joint_table(session, rows),
            "statistics": tables.statistics_table(session, _pooled(here)),
            "digests": tables.digest_table(rows),
        },
        films=[Film(rollout=r, video=_video(folder, r)) for r in rollouts],
        closed_loop=success_sentence(rollouts),
        resume=f"zk0 run --resume {shlex.quote(str(folder))}",
        ledger_root=Ledger(here.ledger).root() if here.ledger.is_file() else None,
        session_toml=session_toml,
        light=css_variables(LIGHT),
        dark=css_variables(DARK),
    )
    write_bytes(path, page.encode())


def report_markdown(
    *, session: Session, members: Sequence[Member], history: Sequence[RoundRecord], rollouts: Sequence[Rollout]
) -> str:
    """The report in short, in GitHub's Markdown with the charts inside; well below 1 MB."""
    rows = ordered(history)
    found = verdict(rows, rollouts)
    keys = [(k.title, k.value, k.note) for k in _key_figures(session, members, rows, rollouts)]
    parts = [
        f"# {escaped(session.name)}",
        f"**{escaped(found.headline)}**",
        "\n\n".join(escaped(s) for s in found.sentences),
        table(("figure", "value", ""), keys),
        f"![Policy loss on unseen data by round]({_data_png(policy_loss_figure, rows, LIGHT, 100)})",
        "## Rounds",
        table(*tables.round_table(session, rows).plain()),
        "## Clients",
        table(*tables.client_table(members, rows).plain()),
        f"![Clients, schedule and action error by round]({_data_png(federated_metrics_figure, rows, LIGHT, 80)})",
    ]
    refused = tables.refusal_table(rows)
    if refused.rows:
        parts += ["## Refused updates", table(*refused.plain())]
    return "\n\n".join(parts) + "\n"


def _key_figures(
    session: Session, members: Sequence[Member], rows: Sequence[RoundRecord], rollouts: Sequence[Rollout]
) -> list[KeyFigure]:
    judged = [r.evaluation for r in rows if r.evaluation]
    last = judged[-1] if judged else None
    loss = plus_minus(last.policy_loss, tables.half_width(last.policy_loss_se)) if last else DASH
    units = session.contract.units
    error = f"{fixed(last.action_error_degrees, 2)} {units}" if last else DASH
    start = f"{fixed(judged[0].policy_loss, 3)} at the start" if len(judged) > 1 else "dimensionless"
    start_error = f"{fixed(judged[0].action_error_degrees, 2)} {units} at the start" if len(judged) > 1 else "open loop"
    done = rows[-1].round if rows else None
    refused = sum(len(r.refusals) for r in rows)
    used = sum(len(r.contributions) for r in rows)
    sent = sum(u.bytes for r in rows for u in r.updates)
    weights = rows[-1].checkpoint.bytes if rows else None
    return [
        KeyFigure(title="Policy loss, unseen data", value=loss, note=start),
        KeyFigure(title="Action error, unseen data", value=error, note=start_error),
        _success(rollouts),
        KeyFigure(title="Rounds", value=f"{count(done)} of {session.rounds}", note=f"seed {session.seed}"),
        KeyFigure(
            title="Clients",
            value=count(len(members)),
            note=f"{count(sum(m.train_frames for m in members))} training frames",
        ),
        KeyFigure(title="Updates used", value=count(used), note=f"{count(refused)} refused"),
        KeyFigure(title="Trained weights", value=megabytes(weights), note=f"{megabytes(sent)} of updates in all"),
        KeyFigure(title="Time", value=duration(sum(r.seconds for r in rows)), note="finished rounds, round 0 included"),
    ]


def _success(rollouts: Sequence[Rollout]) -> KeyFigure:
    successes, attempts = sum(r.success for r in rollouts), len(rollouts)
    ends = wilson(successes, attempts)
    if ends is None:
        return KeyFigure(title="Closed-loop success", value=DASH, note="no attempt was made")
    note = f"95 % interval {percent(ends[0])} to {percent(ends[1])}"
    return KeyFigure(title="Closed-loop success", value=f"{successes} of {attempts}", note=note)


def _charts(rows: Sequence[RoundRecord]) -> list[Chart]:
    made: list[tuple[str, Callable[[Sequence[RoundRecord], Theme], Figure]]] = [
        ("Policy loss on unseen data by round", policy_loss_figure),
        ("Client losses, action error, learning rate, update norms, cosines and mu by round", federated_metrics_figure),
    ]
    return [
        Chart(
            title=title,
            light=_data_png(figure, rows, LIGHT),
            dark=_data_png(figure, rows, DARK),
            text=f"{title}; the numbers are in the tables below",
        )
        for title, figure in made
    ]


def _data_png(
    figure: Callable[[Sequence[RoundRecord], Theme], Figure], rows: Sequence[RoundRecord], theme: Theme, dpi: int = 150
) -> str:
    return f"data:image/png;base64,{b64encode(png(figure(rows, theme), dpi)).decode()}"


def _video(folder: Path, rollout: Rollout) -> str | None:
    if rollout.video is None:
        return None
    path = folder / rollout.video
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
