"""Tables of a report about rounds: decisions, time, refusals, weights."""

from collections.abc import Sequence

from zk0.records import RoundRecord
from zk0.report.figures import listed, megabytes, moment, number
from zk0.report.metrics import ordered
from zk0.report.tables import Cell, Column, Table, bounded, decimal, free, whole, words
from zk0.session import Session


def round_table(session: Session, history: Sequence[RoundRecord]) -> Table:
    """What was decided for each round, why, and what came of it."""
    columns = (
        Column(title="round"),
        Column(title="policy loss ± 1.96 SE", unit="dimensionless"),
        Column(title="action error", unit=session.contract.units),
        Column(title="lr"),
        Column(title="mu"),
        Column(title="lr factor"),
        Column(title="updates used"),
        Column(title="refused"),
        Column(title="moved by", unit="L2"),
        Column(title="why", kind="text"),
    )
    return Table(caption="Rounds", columns=columns, rows=tuple(_round_row(r) for r in ordered(history)))


def _round_row(record: RoundRecord) -> tuple[Cell, ...]:
    judged, decided = record.evaluation, record.decision
    factors = decided.client_lr_factors if decided else {}
    why = decided.reason if decided else "start, nothing is trained"
    if factors:
        why += "; " + ", ".join(f"{client} × {number(factor)}" for client, factor in sorted(factors.items()))
    return (
        whole(record.round),
        bounded(judged.policy_loss if judged else None, judged.policy_loss_se if judged else None),
        decimal(judged.action_error_degrees if judged else None, 2),
        free(decided.lr if decided else None),
        free(decided.mu if decided else None),
        free(decided.lr_factor if decided else None),
        whole(len(record.contributions) if record.round else None),
        whole(len(record.refusals) if record.round else None),
        decimal(record.param_update_norm, 3),
        words(why),
    )


def stages(history: Sequence[RoundRecord]) -> tuple[str, ...]:
    """The stages that took time, in the order of their first coming."""
    return tuple(dict.fromkeys(stage for r in ordered(history) for stage in r.stage_seconds))


def time_table(history: Sequence[RoundRecord]) -> Table:
    """Seconds by round and stage."""
    names = stages(history)
    columns = (
        Column(title="round"),
        *(Column(title=name, unit="s") for name in names),
        Column(title="whole round", unit="s"),
        Column(title="finished at", kind="text"),
    )
    rows = tuple(
        (
            whole(r.round),
            *(decimal(r.stage_seconds.get(name), 2) for name in names),
            decimal(r.seconds, 2),
            words(moment(r.finished_at)),
        )
        for r in ordered(history)
    )
    return Table(caption="Where the time went", columns=columns, rows=rows)


def refusal_table(history: Sequence[RoundRecord]) -> Table:
    """Updates that were not used, and why."""
    columns = (Column(title="round"), Column(title="client", kind="text"), Column(title="reason", kind="text"))
    rows = tuple((whole(r.round), words(f.client), words(f.reason)) for r in ordered(history) for f in r.refusals)
    return Table(caption="Refused updates", columns=columns, rows=rows)


def unjudged_table(history: Sequence[RoundRecord]) -> Table:
    """Clients that did not judge on what they hold out, and why."""
    columns = (Column(title="round"), Column(title="client", kind="text"), Column(title="reason", kind="text"))
    rows = tuple(
        (whole(r.round), words(f.client), words(f.reason))
        for r in ordered(history)
        if r.client_evaluation
        for f in r.client_evaluation.refusals
    )
    return Table(caption="Clients that did not judge", columns=columns, rows=rows)


def digest_table(history: Sequence[RoundRecord]) -> Table:
    """The global weights of every round."""
    columns = (
        Column(title="round"),
        Column(title="BLAKE3 of the global weights", kind="code"),
        Column(title="size"),
        Column(title="clients", kind="text"),
    )
    rows = tuple(
        (
            whole(r.round),
            words(r.checkpoint.digest),
            Cell(text=megabytes(r.checkpoint.bytes), key=r.checkpoint.bytes),
            words(listed(sorted(c.client for c in r.contributions))),
        )
        for r in ordered(history)
    )
    return Table(caption="Weights", columns=columns, rows=rows)
