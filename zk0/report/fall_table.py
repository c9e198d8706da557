"""Table of a report about what each round brought, paired episode by episode."""

from collections.abc import Sequence

from zk0.interval import Estimate, Metric, measured_alike, paired_fall
from zk0.records import Evaluation, RoundRecord
from zk0.report.figures import DASH, fixed
from zk0.report.metrics import ordered
from zk0.report.tables import Cell, Column, Table, whole
from zk0.session import Session


def fall_table(session: Session, history: Sequence[RoundRecord]) -> Table:
    """How far loss and action error on unseen data fell, since the round judged before and since the first one."""
    columns = (
        Column(title="round"),
        Column(title="loss fell since the round before", unit="95 % interval"),
        Column(title="loss fell since the start", unit="95 % interval"),
        Column(title="action error fell since the round before", unit=session.contract.units),
        Column(title="action error fell since the start", unit=session.contract.units),
    )
    judged = [r.evaluation for r in ordered(history) if r.evaluation]
    rows = tuple(_row(judged[0], judged[at - 1], judged[at]) for at in range(1, len(judged)))
    return Table(caption="What each round brought", columns=columns, rows=rows)


def _row(start: Evaluation, before: Evaluation, now: Evaluation) -> tuple[Cell, ...]:
    return (
        whole(now.round),
        _fall(before, now, "policy_loss", 3),
        _fall(start, now, "policy_loss", 3),
        _fall(before, now, "action_error_degrees", 2),
        _fall(start, now, "action_error_degrees", 2),
    )


def _fall(before: Evaluation, now: Evaluation, metric: Metric, places: int) -> Cell:
    if not measured_alike(before, now):
        return Cell(text="measured differently")
    return estimated(paired_fall(before, now, metric), places)


def estimated(estimate: Estimate | None, places: int) -> Cell:
    """A cell with an estimate and its interval."""
    if estimate is None:
        return Cell(text=DASH)
    ends = estimate.interval
    text = fixed(estimate.value, places)
    if ends is not None:
        text += f" ({fixed(ends[0], places)} to {fixed(ends[1], places)})"
    return Cell(text=text, key=estimate.value)
