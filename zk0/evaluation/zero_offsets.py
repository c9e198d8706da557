"""Clients whose joints seem to have another zero position than those of all others."""

from collections.abc import Iterator, Sequence

import numpy as np

from zk0.records import Member
from zk0.storage.redaction import public_name


def zero_offsets(members: Sequence[Member], joints: Sequence[str]) -> dict[str, str]:
    """Return client -> in which joints its mean lies outside of what any other client's arm ever did.

    A calibration with another zero shows like that, and so does another task; a person has to look. Only clients of the
    same calibration and units are compared, and at least three of them: of two, either may be right.

    Args:
        members: what the clients reported.
        joints: names of the dimensions of the state.
    """
    found = {}
    for member in members:
        others = [m for m in members if m.client != member.client and _are_comparable(m, member)]
        if len(others) >= 2 and (places := list(_outside(member, others, joints))):
            found[member.client] = (
                f"{member.client} ({public_name(member.dataset)}): {'; '.join(places)}; if its task is not that "
                "different, its calibration is, so check the zero positions"
            )
    return found


def _outside(member: Member, others: Sequence[Member], joints: Sequence[str]) -> Iterator[str]:
    mean = member.statistics.state.mean
    low = np.min([m.statistics.state.min for m in others], axis=0)
    high = np.max([m.statistics.state.max for m in others], axis=0)
    for joint, value in enumerate(mean):
        if not low[joint] <= value <= high[joint]:
            name = joints[joint] if joint < len(joints) else f"dim_{joint}"
            yield f"{name} is {value:.4g} on average, all others are from {low[joint]:.4g} to {high[joint]:.4g}"


def _are_comparable(one: Member, other: Member) -> bool:
    return (
        len(one.statistics.state.mean) == len(other.statistics.state.mean)
        and one.report.calibration == other.report.calibration
        and one.report.units in (other.report.units, None)
    )
