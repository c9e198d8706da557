"""Tables of a report about how good the policy is: evaluation sets, joints."""

from collections.abc import Sequence

from zk0.public import public_name
from zk0.records import RoundRecord, SetScore
from zk0.report.metrics import ordered
from zk0.report.tables import Cell, Column, Table, bounded, decimal, whole, words
from zk0.session import Session


def set_table(session: Session, history: Sequence[RoundRecord]) -> Table:
    """The evaluation sets under the first and the last judged model."""
    judged = [r.evaluation for r in ordered(history) if r.evaluation]
    shown = [judged[0], judged[-1]] if len(judged) > 1 else judged
    rounds = [f"round {e.round}" for e in shown]
    columns = (
        Column(title="evaluation set", kind="text"),
        Column(title="episodes"),
        Column(title="frames"),
        *(Column(title="policy loss ± 1.96 SE", unit=number) for number in rounds),
        *(Column(title="action error", unit=f"{session.contract.units}, {number}") for number in rounds),
    )
    known = [{s.dataset: s for s in e.sets} for e in shown]
    rows = tuple(_set_row(s, [sets.get(s.dataset) for sets in known]) for s in judged[-1].sets) if judged else ()
    return Table(caption="Evaluation sets", columns=columns, rows=rows)


def _set_row(now: SetScore, scores: Sequence[SetScore | None]) -> tuple[Cell, ...]:
    losses = [bounded(s.policy_loss if s else None, s.policy_loss_se if s else None) for s in scores]
    errors = [decimal(s.action_error_degrees if s else None, 2) for s in scores]
    return (words(public_name(now.dataset)), whole(len(now.episodes)), whole(now.frames), *losses, *errors)


def joint_names(session: Session, width: int) -> tuple[str, ...]:
    """Names of `width` joints with their unit."""
    names = session.contract.joints if len(session.contract.joints) == width else tuple(map(str, range(width)))
    return tuple(n.removesuffix(".pos").replace("_", " ") for n in names)


def joint_unit(session: Session, joint: str) -> str:
    """Degrees, or the gripper's own scale."""
    return "0–100" if joint.startswith("gripper") else session.contract.units


def joint_table(session: Session, history: Sequence[RoundRecord]) -> Table:
    """Mean absolute action error, joint by joint, under the last judged model."""
    judged = [r.evaluation for r in ordered(history) if r.evaluation]
    scores = judged[-1].sets if judged else ()
    names = joint_names(session, max((len(s.joint_error_degrees) for s in scores), default=0))
    columns = (
        Column(title="evaluation set", kind="text"),
        *(Column(title=name, unit=joint_unit(session, name)) for name in names),
    )
    rows = tuple(
        (words(public_name(s.dataset)), *(decimal(e, 2) for e in s.joint_error_degrees))
        for s in scores
        if len(s.joint_error_degrees) == len(names)
    )
    return Table(caption="Action error by joint, last judged round", columns=columns, rows=rows)
