"""Tables of a report about clients and their data: who brought what, findings, statistics."""

from collections.abc import Sequence
from typing import Literal

from zk0.public import public_name
from zk0.records import Contribution, Member, Moments, RoundRecord, Statistics, Update
from zk0.report.figures import percent, plus_minus
from zk0.report.metrics import ordered
from zk0.report.score_tables import joint_names, joint_unit
from zk0.report.tables import Cell, Column, Table, decimal, whole, words
from zk0.session import Session


def client_table(members: Sequence[Member], history: Sequence[RoundRecord]) -> Table:
    """What each client brought, learned and weighed."""
    columns = (
        Column(title="client", kind="text"),
        Column(title="data set", kind="text"),
        Column(title="train episodes"),
        Column(title="held-out episodes"),
        Column(title="train frames"),
        Column(title="held-out frames"),
        Column(title="first loss"),
        Column(title="last loss"),
        Column(title="update norm", unit="L2"),
        Column(title="cosine to mean"),
        Column(title="weight"),
        Column(title="rounds used"),
        Column(title="refusals"),
    )
    rows = tuple(_client_row(m, ordered(history)) for m in members)
    return Table(caption="Clients", columns=columns, rows=rows)


def _client_row(member: Member, rows: Sequence[RoundRecord]) -> tuple[Cell, ...]:
    updates = [u for r in rows for u in r.updates if u.client == member.client]
    shares = [c for r in rows for c in r.contributions if c.client == member.client]
    first, last = (updates[0], updates[-1]) if updates else (None, None)
    share = shares[-1] if shares else None
    return (
        words(member.client),
        words(public_name(member.dataset)),
        whole(len(member.split.train)),
        whole(len(member.split.held_out)),
        whole(member.train_frames),
        whole(_held_out_frames(member)),
        decimal(_loss(first), 3),
        decimal(_loss(last), 3),
        decimal(_of(share, "update_norm"), 3),
        decimal(_of(share, "cosine_to_mean"), 3),
        Cell(text=percent(_of(share, "weight"), 1), key=_of(share, "weight")),
        whole(len(shares)),
        whole(sum(f.client == member.client for r in rows for f in r.refusals)),
    )


def _held_out_frames(member: Member) -> int | None:
    """Known only where the client has the whole data set to itself."""
    split, report = member.split, member.report
    if report.frames is None or report.episodes != len(split.train) + len(split.held_out):
        return None
    return report.frames - member.train_frames


def _loss(update: Update | None) -> float | None:
    return None if update is None else update.metrics.policy_loss


def _of(share: Contribution | None, name: Literal["weight", "update_norm", "cosine_to_mean"]) -> float | None:
    return None if share is None else getattr(share, name)


def finding_table(members: Sequence[Member]) -> Table:
    """What the checks of the data sets had to say, once for each data set."""
    columns = tuple(
        Column(title=title, kind="text") for title in ("data set", "rule", "severity", "where", "found", "expected")
    )
    found = dict.fromkeys((public_name(m.dataset), f) for m in members for f in m.report.findings)
    rows = tuple(
        (words(name), words(f.rule), words(f.severity), words(f.where), words(f.found), words(f.expected))
        for name, f in found
    )
    return Table(caption="Findings of the data checks", columns=columns, rows=rows)


def statistics_table(session: Session, statistics: Statistics | None) -> Table:
    """Pooled mean ± std, minimum and maximum of every joint."""
    columns = (
        Column(title="joint", kind="text"),
        Column(title="unit", kind="text"),
        *(Column(title=f"{what} {part}") for what in ("state", "action") for part in ("mean ± std", "min", "max")),
    )
    if statistics is None:
        return Table(caption="Pooled statistics", columns=columns, rows=())
    rows = tuple(
        (
            words(name),
            words(joint_unit(session, name)),
            *_moments(statistics.state, at),
            *_moments(statistics.action, at),
        )
        for at, name in enumerate(joint_names(session, len(statistics.state.mean)))
    )
    return Table(caption="Pooled statistics", columns=columns, rows=rows)


def _moments(moments: Moments, at: int) -> tuple[Cell, ...]:
    mean = Cell(text=plus_minus(moments.mean[at], moments.std[at], 2), key=moments.mean[at])
    return mean, decimal(moments.min[at], 2), decimal(moments.max[at], 2)
