"""Tables of the clients and their data: contributions, every round, findings of the data check."""

from collections.abc import Mapping, Sequence
from typing import Literal

from zk0.data.check.quality import describe_quality
from zk0.records import Contribution, Member, RoundRecord, Update
from zk0.report.contributions import Influence, client_influences
from zk0.report.metrics import sorted_by_round
from zk0.report.number_format import percent
from zk0.report.tables.table import Cell, Column, Table, decimal_cell, integer_cell, number_cell, text_cell
from zk0.storage.redaction import public_name


def client_table(members: Sequence[Member], history: Sequence[RoundRecord]) -> Table:
    """Data, losses and last contribution of each client."""
    columns = (
        Column(title="client", kind="text"),
        Column(title="dataset", kind="text"),
        Column(title="train episodes"),
        Column(title="held-out episodes"),
        Column(title="train frames"),
        Column(title="held-out frames"),
        Column(title="first loss"),
        Column(title="last loss"),
        Column(title="update norm", unit="L2"),
        Column(title="cosine to mean"),
        Column(title="weight"),
        Column(title="share of delta"),
        Column(title="leave-one-out shift"),
        Column(title="rounds used"),
        Column(title="rejections"),
        Column(title="data quality", kind="text"),
    )
    records = sorted_by_round(history)
    influences = [client_influences(r) for r in records]
    rows = tuple(_client_row(m, records, influences) for m in members)
    return Table(caption="Clients", columns=columns, rows=rows)


def _client_row(
    member: Member, records: Sequence[RoundRecord], influences: Sequence[dict[str, Influence]]
) -> tuple[Cell, ...]:
    updates = [u for r in records for u in r.updates if u.client == member.client]
    contributions = [c for r in records for c in r.contributions if c.client == member.client]
    first, last = (updates[0], updates[-1]) if updates else (None, None)
    contribution = contributions[-1] if contributions else None
    of_rounds = (by_client[member.client] for by_client in reversed(influences) if member.client in by_client)
    return (
        text_cell(member.client),
        text_cell(public_name(member.dataset)),
        integer_cell(len(member.split.train)),
        integer_cell(len(member.split.held_out)),
        integer_cell(member.train_frames),
        integer_cell(_held_out_frames(member)),
        decimal_cell(_loss(first), 3),
        decimal_cell(_loss(last), 3),
        *_contribution_cells(contribution, next(of_rounds, None)),
        integer_cell(len(contributions)),
        integer_cell(sum(f.client == member.client for r in records for f in r.refusals)),
        text_cell(describe_quality(member.report)),
    )


def client_round_table(history: Sequence[RoundRecord]) -> Table:
    """Decision, metrics and contribution of every client in every round."""
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
        Column(title="share of delta"),
        Column(title="leave-one-out shift"),
        Column(title="optimizer steps"),
        Column(title="seconds"),
    )
    mus = {r.round: r.decision.mu for r in history if r.decision}
    rows = tuple(row for r in sorted_by_round(history) for row in _round_rows(r, mus))
    if any(score.personal for r in history if r.client_evaluation for score in r.client_evaluation.scores):
        return _with_own_losses(Table(caption="Every client in every round", columns=columns, rows=rows), history)
    return Table(caption="Every client in every round", columns=columns, rows=rows)


def _with_own_losses(table: Table, history: Sequence[RoundRecord]) -> Table:
    """The table with a column beside the held-out loss: that of the client's own policy (`training.personal`)."""
    at = [column.title for column in table.columns].index("held-out loss") + 1
    records = [(r, update.client) for r in sorted_by_round(history) for update in r.updates]
    rows = tuple(
        (*row[:at], decimal_cell(_own_loss(record, client), 3), *row[at:])
        for row, (record, client) in zip(table.rows, records, strict=True)
    )
    columns = (*table.columns[:at], Column(title="held-out loss, own policy"), *table.columns[at:])
    return table.model_copy(update={"columns": columns, "rows": rows})


def _own_loss(record: RoundRecord, client: str) -> float | None:
    scores = record.client_evaluation.scores if record.client_evaluation else ()
    return next((s.personal.policy_loss for s in scores if s.client == client and s.personal), None)


def _round_rows(record: RoundRecord, mus: Mapping[int, float]) -> list[tuple[Cell, ...]]:
    influences = client_influences(record)
    return [
        _client_round_row(record, update, mus.get(update.round), influences.get(update.client))
        for update in record.updates
    ]


def _client_round_row(
    record: RoundRecord, update: Update, mu: float | None, influence: Influence | None
) -> tuple[Cell, ...]:
    metrics, name = update.metrics, update.client
    contribution = next((c for c in record.contributions if c.client == name), None)
    scores = record.client_evaluation.scores if record.client_evaluation else ()
    held_out = next((s.score.policy_loss for s in scores if s.client == name), None)
    _, *contribution_cells = _contribution_cells(contribution, influence)
    return (
        integer_cell(record.round),
        text_cell(name),
        number_cell(metrics.lr_first),
        number_cell(metrics.lr_last),
        number_cell(mu),
        decimal_cell(metrics.policy_loss, 3),
        decimal_cell(held_out, 3),
        number_cell(metrics.fedprox_loss),
        decimal_cell(metrics.grad_norm, 2),
        decimal_cell(metrics.update_norm, 3),
        *contribution_cells,
        integer_cell(metrics.local_steps),
        decimal_cell(metrics.seconds, 1),
    )


def _contribution_cells(contribution: Contribution | None, influence: Influence | None) -> tuple[Cell, ...]:
    """Update norm, cosine to mean, weight, share of the aggregated delta, leave-one-out shift."""
    weight = _value(contribution, "weight")
    share, shift = (influence.share, influence.leave_one_out_shift) if influence else (None, None)
    return (
        decimal_cell(_value(contribution, "update_norm"), 3),
        decimal_cell(_value(contribution, "cosine_to_mean"), 3),
        Cell(text=percent(weight, 1), key=weight),
        Cell(text=percent(share), key=share),
        Cell(text=percent(shift), key=shift),
    )


def _held_out_frames(member: Member) -> int | None:
    """Number of held-out frames; None if the client shares its dataset with others."""
    split, report = member.split, member.report
    if report.frames is None or report.episodes != len(split.train) + len(split.held_out):
        return None
    return report.frames - member.train_frames


def _loss(update: Update | None) -> float | None:
    return None if update is None else update.metrics.policy_loss


def _value(contribution: Contribution | None, name: Literal["weight", "update_norm", "cosine_to_mean"]) -> float | None:
    return None if contribution is None else getattr(contribution, name)


def finding_table(members: Sequence[Member]) -> Table:
    """Findings of the data checks, once for each dataset."""
    columns = tuple(
        Column(title=title, kind="text") for title in ("dataset", "rule", "severity", "where", "found", "expected")
    )
    findings = dict.fromkeys((public_name(m.dataset), f) for m in members for f in m.report.findings)
    rows = tuple(
        tuple(text_cell(text) for text in (name, f.rule, f.severity, f.where, f.found, f.expected))
        for name, f in findings
    )
    return Table(caption="Findings of the data checks", columns=columns, rows=rows)
