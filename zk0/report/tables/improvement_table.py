"""Table of the improvement in each round, paired episode by episode."""

from collections.abc import Sequence

from zk0.records import Evaluation, RoundRecord
from zk0.report.metrics import sorted_by_round
from zk0.report.tables.table import Cell, Column, Table, estimate_cell, integer_cell
from zk0.settings.session import Session
from zk0.stats.intervals import EpisodeMetric, comparable, paired_improvement


def improvement_table(session: Session, history: Sequence[RoundRecord]) -> Table:
    """Decrease of loss and action error on unseen data, since the previous evaluated round and since the first one."""
    units = session.contract.units
    columns = (
        Column(title="round"),
        Column(title="loss, since the previous evaluation", unit="95 % interval"),
        Column(title="loss, since the start", unit="95 % interval"),
        Column(title="action error, since the previous evaluation", unit=f"{units}, 95 % interval"),
        Column(title="action error, since the start", unit=f"{units}, 95 % interval"),
    )
    evaluations = [r.evaluation for r in sorted_by_round(history) if r.evaluation]
    rows = tuple(_row(evaluations[0], evaluations[at - 1], evaluations[at]) for at in range(1, len(evaluations)))
    return Table(caption="Improvement in each round", columns=columns, rows=rows)


def _row(start: Evaluation, before: Evaluation, now: Evaluation) -> tuple[Cell, ...]:
    return (
        integer_cell(now.round),
        _improvement(before, now, "policy_loss", 3),
        _improvement(start, now, "policy_loss", 3),
        _improvement(before, now, "action_error_degrees", 2),
        _improvement(start, now, "action_error_degrees", 2),
    )


def _improvement(before: Evaluation, now: Evaluation, metric: EpisodeMetric, places: int) -> Cell:
    if not comparable(before, now):
        return Cell(text="not comparable")
    return estimate_cell(paired_improvement(before, now, metric), places)
