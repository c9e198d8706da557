"""Tables of the groups of clients that share joints and units, and of the statistics pooled within each group."""

from collections.abc import Iterator, Sequence

from zk0.data.statistics import SMALLEST_STD, joints_with_smallest_std
from zk0.records import Moments, StatisticsGroup
from zk0.report.number_format import DASH, plus_minus
from zk0.report.tables.score_tables import joint_labels, joint_unit
from zk0.report.tables.table import Cell, Column, Table, decimal_cell, integer_cell, text_cell
from zk0.settings.session import Session
from zk0.storage.redaction import public_name

CALIBRATION_JOINTS = {"main": "main_*, as of LeRobot before June 2025", "pos": "*.pos", "plain": "without affix"}
"""Known calibrations of an SO arm -> their joint names in a few words."""


def group_table(groups: Sequence[StatisticsGroup]) -> Table:
    """Joints, units, clients and evaluation sets of each group; the first group is the default."""
    titles = ("group", "joints", "units", "clients", "evaluation sets")
    columns = (*(Column(title=title, kind="text") for title in titles), Column(title="training frames"))
    rows = tuple(
        (
            text_cell(group.name if at else f"{group.name} (default)"),
            text_cell(CALIBRATION_JOINTS.get(group.calibration or "", "those of the contract")),
            text_cell(group.units),
            text_cell(", ".join(group.clients)),
            text_cell(", ".join(public_name(name) for name in group.evaluation_sets) or DASH),
            integer_cell(group.statistics.state.count),
        )
        for at, group in enumerate(groups)
    )
    return Table(caption="Groups with the same joints and units", columns=columns, rows=rows)


def statistics_table(session: Session, groups: Sequence[StatisticsGroup]) -> Table:
    """Mean ± std, minimum and maximum of each joint, by group; no rows without groups."""
    columns = (
        Column(title="joint", kind="text"),
        Column(title="unit", kind="text"),
        *(Column(title=f"{what} {part}") for what in ("state", "action") for part in ("mean ± std", "min", "max")),
        *([Column(title="group", kind="text")] if len(groups) > 1 else []),
    )
    names = [(text_cell(group.name),) if len(groups) > 1 else () for group in groups]
    rows = tuple((*row, *name) for group, name in zip(groups, names, strict=True) for row in _joints(session, group))
    return Table(caption="Statistics for normalization", columns=columns, rows=rows)


def still_joints_note(session: Session, groups: Sequence[StatisticsGroup]) -> str:
    """Return which joints hardly moved at the clients and how they are normalized; empty where all joints moved."""
    notes = []
    for group in groups:
        names = joint_labels(session, len(group.statistics.state.mean))
        if still := [names[joint] for joint in joints_with_smallest_std(group.statistics, group.units)]:
            whose = f" of group {group.name}" if len(groups) > 1 else ""
            notes.append(
                f"Joints that hardly moved in the training frames{whose}: {', '.join(still)}. Their standard deviation "
                f"counts as {SMALLEST_STD[group.units]:g} ({group.units}), so that small offsets stay small; the "
                "policy has not learned to move them."
            )
    return " ".join(notes)


def _joints(session: Session, group: StatisticsGroup) -> Iterator[tuple[Cell, ...]]:
    statistics = group.statistics
    for at, name in enumerate(joint_labels(session, len(statistics.state.mean))):
        unit = text_cell(joint_unit(group.units, name))
        yield text_cell(name), unit, *_moment_cells(statistics.state, at), *_moment_cells(statistics.action, at)


def _moment_cells(moments: Moments, at: int) -> tuple[Cell, ...]:
    mean = Cell(text=plus_minus(moments.mean[at], moments.std[at], 2), key=moments.mean[at])
    return mean, decimal_cell(moments.min[at], 2), decimal_cell(moments.max[at], 2)
