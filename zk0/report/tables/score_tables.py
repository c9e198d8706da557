"""Tables of the evaluation on unseen data: evaluation sets, and joints."""

from collections.abc import Sequence

from zk0.records import RoundRecord, SetScore
from zk0.report.metrics import sorted_by_round
from zk0.report.number_format import DASH
from zk0.report.tables.table import Cell, Column, Table, decimal_cell, integer_cell, mean_cell, text_cell
from zk0.settings.session import Session
from zk0.storage.redaction import public_name


def evaluation_set_table(session: Session, history: Sequence[RoundRecord]) -> Table:
    """Losses and action errors on each evaluation set, for the first and the last evaluated model."""
    evaluations = [r.evaluation for r in sorted_by_round(history) if r.evaluation]
    shown = [evaluations[0], evaluations[-1]] if len(evaluations) > 1 else evaluations
    rounds = [f"round {e.round}" for e in shown]
    columns = (
        Column(title="evaluation set", kind="text"),
        Column(title="episodes"),
        Column(title="frames"),
        *(Column(title="policy loss", unit=f"± 95 %, {number}") for number in rounds),
        *(Column(title="action error", unit=f"{session.contract.units}, ± 95 %, {number}") for number in rounds),
        Column(title="unseen by", kind="text"),
    )
    scores = [{s.dataset: s for s in e.sets} for e in shown]
    last = evaluations[-1].sets if evaluations else ()
    rows = tuple(_set_row(s, [by_dataset.get(s.dataset) for by_dataset in scores]) for s in last)
    return Table(caption="Evaluation sets", columns=columns, rows=rows)


def _set_row(last: SetScore, scores: Sequence[SetScore | None]) -> tuple[Cell, ...]:
    return (
        text_cell(public_name(last.dataset)),
        integer_cell(len(last.episodes)),
        integer_cell(last.frames),
        *(mean_cell(s, "policy_loss", 3) for s in scores),
        *(mean_cell(s, "action_error_degrees", 2) for s in scores),
        text_cell(last.unseen_by or DASH),
    )


def joint_labels(session: Session, count: int) -> tuple[str, ...]:
    """Names of the session's joints without suffix; numbers if `count` differs from their number."""
    names = session.contract.joints if len(session.contract.joints) == count else tuple(map(str, range(count)))
    return tuple(n.removesuffix(".pos").replace("_", " ") for n in names)


def joint_unit(units: str, joint: str) -> str:
    """Unit of a joint: that of the dataset, or 0–100 for a gripper."""
    return "0–100" if joint.startswith("gripper") else units


def joint_table(session: Session, history: Sequence[RoundRecord]) -> Table:
    """Mean absolute action error of each joint, for the last evaluated model."""
    evaluations = [r.evaluation for r in sorted_by_round(history) if r.evaluation]
    scores = evaluations[-1].sets if evaluations else ()
    labels = joint_labels(session, max((len(s.joint_error_degrees) for s in scores), default=0))
    columns = (
        Column(title="evaluation set", kind="text"),
        *(Column(title=label, unit=joint_unit(session.contract.units, label)) for label in labels),
    )
    rows = tuple(
        (text_cell(public_name(s.dataset)), *(decimal_cell(e, 2) for e in s.joint_error_degrees))
        for s in scores
        if len(s.joint_error_degrees) == len(labels)
    )
    return Table(caption="Action error by joint, last evaluated round", columns=columns, rows=rows)
