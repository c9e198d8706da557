"""Clients whose joints seem to have another zero position than those of all others."""

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

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
    low, high = (_padded([getattr(m.statistics.state, end) for m in members]) for end in ("min", "max"))
    kinds = _numbered([(len(m.statistics.state.mean), m.report.calibration) for m in members])
    units = _numbered([m.report.units for m in members])
    for place, member in enumerate(members):
        others = kinds == kinds[place]
        if member.report.units is not None:
            others &= units == units[place]
        others[place] = False
        if others.sum() >= 2 and (joints_outside := list(_outside(member, low[others], high[others], joints))):
            found[member.client] = (
                f"{member.client} ({public_name(member.dataset)}): {'; '.join(joints_outside)}; if its task is not "
                "that different, its calibration is, so check the zero positions"
            )
    return found


def _numbered(values: Sequence[Hashable]) -> NDArray[np.int64]:
    """Return a number for each value, the same for equal values."""
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return np.array([numbers[value] for value in values], dtype=np.int64)


def _padded(rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Return rows of several lengths as one array (rows, longest); NaN where a row is shorter."""
    padded = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


def _outside(
    member: Member, low: NDArray[np.float64], high: NDArray[np.float64], joints: Sequence[str]
) -> Iterator[str]:
    """Yield the joints whose mean is not between the smallest and the largest value of all others."""
    lowest, highest = low.min(axis=0), high.max(axis=0)
    for joint, value in enumerate(member.statistics.state.mean):
        if not lowest[joint] <= value <= highest[joint]:
            name = joints[joint] if joint < len(joints) else f"dim_{joint}"
            yield f"{name} is {value:.4g} on average, all others are from {lowest[joint]:.4g} to {highest[joint]:.4g}"
