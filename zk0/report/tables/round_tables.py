"""Tables of the rounds: decisions and results, time, rejected updates, failed client evaluations, weights."""

from collections.abc import Sequence

from zk0.records import RoundRecord
from zk0.report.metrics import sorted_by_round
from zk0.report.number_format import comma_separated, megabytes, number, spaced_timestamp
from zk0.report.tables.table import (
    Cell,
    Column,
    Table,
    decimal_cell,
    integer_cell,
    mean_cell,
    number_cell,
    text_cell,
)
from zk0.settings.session import Session


def round_table(session: Session, history: Sequence[RoundRecord]) -> Table:
    """Decision of each round with its reason, and its results."""
    columns = (
        Column(title="round"),
        Column(title="policy loss", unit="± 95 %"),
        Column(title="action error", unit=f"{session.contract.units}, ± 95 %"),
        Column(title="lr"),
        Column(title="mu"),
        Column(title="lr factor"),
        Column(title="updates used"),
        Column(title="rejected"),
        Column(title="global change", unit="L2"),
        Column(title="reason", kind="text"),
    )
    rows = tuple(_round_row(r) for r in sorted_by_round(history))
    return Table(caption="Rounds", columns=columns, rows=rows)


def _round_row(record: RoundRecord) -> tuple[Cell, ...]:
    decision = record.decision
    factors = decision.client_lr_factors if decision else {}
    reason = decision.reason if decision else "start, no training"
    if factors:
        reason += "; " + ", ".join(f"{client} × {number(factor)}" for client, factor in sorted(factors.items()))
    return (
        integer_cell(record.round),
        mean_cell(record.evaluation, "policy_loss", 3),
        mean_cell(record.evaluation, "action_error_degrees", 2),
        number_cell(decision.lr if decision else None),
        number_cell(decision.mu if decision else None),
        number_cell(decision.lr_factor if decision else None),
        integer_cell(len(record.contributions) if record.round else None),
        integer_cell(len(record.refusals) if record.round else None),
        decimal_cell(record.param_update_norm, 3),
        text_cell(reason),
    )


def stage_names(history: Sequence[RoundRecord]) -> tuple[str, ...]:
    """The timed stages, in the order of their first occurrence."""
    return tuple(dict.fromkeys(stage for r in sorted_by_round(history) for stage in r.stage_seconds))


def time_table(history: Sequence[RoundRecord]) -> Table:
    """Seconds by round and stage."""
    names = stage_names(history)
    columns = (
        Column(title="round"),
        *(Column(title=name, unit="s") for name in names),
        Column(title="whole round", unit="s"),
        Column(title="finished at", kind="text"),
    )
    rows = tuple(
        (
            integer_cell(r.round),
            *(decimal_cell(r.stage_seconds.get(name), 2) for name in names),
            decimal_cell(r.seconds, 2),
            text_cell(spaced_timestamp(r.finished_at)),
        )
        for r in sorted_by_round(history)
    )
    return Table(caption="Time by stage", columns=columns, rows=rows)


def refusal_table(history: Sequence[RoundRecord]) -> Table:
    """Rejected updates and the reasons."""
    columns = (Column(title="round"), Column(title="client", kind="text"), Column(title="reason", kind="text"))
    rows = tuple(
        (integer_cell(r.round), text_cell(f.client), text_cell(f.reason))
        for r in sorted_by_round(history)
        for f in r.refusals
    )
    return Table(caption="Rejected updates", columns=columns, rows=rows)


def evaluation_refusal_table(history: Sequence[RoundRecord]) -> Table:
    """Clients without a result on their held-out episodes, and the reasons."""
    columns = (Column(title="round"), Column(title="client", kind="text"), Column(title="reason", kind="text"))
    rows = tuple(
        (integer_cell(r.round), text_cell(f.client), text_cell(f.reason))
        for r in sorted_by_round(history)
        if r.client_evaluation
        for f in r.client_evaluation.refusals
    )
    return Table(caption="Clients without evaluation", columns=columns, rows=rows)


def digest_table(history: Sequence[RoundRecord]) -> Table:
    """Digest and size of the global weights of every round."""
    columns = (
        Column(title="round"),
        Column(title="Digest of the global weights", kind="code"),
        Column(title="size"),
        Column(title="clients", kind="text"),
    )
    rows = tuple(
        (
            integer_cell(r.round),
            text_cell(r.checkpoint.digest),
            Cell(text=megabytes(r.checkpoint.bytes), key=r.checkpoint.bytes),
            text_cell(comma_separated(sorted(c.client for c in r.contributions))),
        )
        for r in sorted_by_round(history)
    )
    return Table(caption="Weights", columns=columns, rows=rows)
