"""Tables of a report about clients and their data: who brought what, findings, statistics."""

from collections.abc import Sequence
from typing import Literal

from zk0.public import public_name
from zk0.records import Contribution, Member, Moments, RoundRecord, Statistics, Update
from zk0.report.contribution import Influence, influences
from zk0.report.figures import percent, plus_minus
from zk0.report.metrics import ordered
from zk0.report.score_tables import joint_names, joint_unit
from zk0.report.tables import Cell, Column, Table, decimal, free, whole, words
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
        Column(title="part of the step"),
        Column(title="without it"),
        Column(title="rounds used"),
        Column(title="refusals"),
    )
    records = ordered(history)
    pulls = [influences(r) for r in records]
    rows = tuple(_client_row(m, records, pulls) for m in members)
    return Table(caption="Clients", columns=columns, rows=rows)


def _client_row(member: Member, rows: Sequence[RoundRecord], pulls: Sequence[dict[str, Influence]]) -> tuple[Cell, ...]:
    updates = [u for r in rows for u in r.updates if u.client == member.client]
    shares = [c for r in rows for c in r.contributions if c.client == member.client]
    first, last = (updates[0], updates[-1]) if updates else (None, None)
    share = shares[-1] if shares else None
    pull = next((of[member.client] for of in reversed(pulls) if member.client in of), None)
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
        _part(pull.share if pull else None),
        _part(pull.shift_without if pull else None),
        whole(len(shares)),
        whole(sum(f.client == member.client for r in rows for f in r.refusals)),
    )


def _part(share: float | None) -> Cell:
    return Cell(text=percent(share), key=share)


def work_table(history: Sequence[RoundRecord]) -> Table:
    """Every client in every round: what it was told, what it measured, what it did to the step."""
    columns = (
        Column(title="round"),
        Column(title="client", kind="text"),
        Column(title="lr, first"),
        Column(title="lr, last"),
        Column(title="mu"),
        Column(title="policy loss"),
        Column(title="held-out loss"),
        Column(title="proximal loss"),
        Column(title="gradient norm"),
        Column(title="update norm", unit="L2"),
        Column(title="cosine to mean"),
        Column(title="weight"),
        Column(title="part of the step"),
        Column(title="without it"),
        Column(title="steps"),
        Column(title="seconds"),
    )
    rows = tuple(row for r in ordered(history) for row in _work_rows(r))
    return Table(caption="Every client in every round", columns=columns, rows=rows)


def _work_rows(record: RoundRecord) -> list[tuple[Cell, ...]]:
    pulls = influences(record)
    return [_work_row(record, update, pulls.get(update.client)) for update in record.updates]


def _work_row(record: RoundRecord, update: Update, pull: Influence | None) -> tuple[Cell, ...]:
    told, name = update.metrics, update.client
    share = next((c for c in record.contributions if c.client == name), None)
    said = record.client_evaluation.scores if record.client_evaluation else ()
    held_out = next((s.score.policy_loss for s in said if s.client == name), None)
    return (
        whole(record.round),
        words(name),
        free(told.lr_first),
        free(told.lr_last),
        free(record.decision.mu if record.decision else None),
        decimal(told.policy_loss, 3),
        decimal(held_out, 3),
        free(told.fedprox_loss),
        decimal(told.grad_norm, 2),
        decimal(told.update_norm, 3),
        decimal(_of(share, "cosine_to_mean"), 3),
        Cell(text=percent(_of(share, "weight"), 1), key=_of(share, "weight")),
        _part(pull.share if pull else None),
        _part(pull.shift_without if pull else None),
        whole(told.local_steps),
        decimal(told.seconds, 1),
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
