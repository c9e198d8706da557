"""Whether one client's joints have another zero position than those of the others."""

import numpy as np
import pytest

from zk0.evaluation.zero_offsets import zero_offsets
from zk0.records import DatasetReport, Member, Moments, Split, Statistics

JOINTS = ("shoulder_pan.pos", "elbow_flex.pos")


def member(name: str, shift: float = 0.0, spread: float = 40.0, units: str | None = "degrees") -> Member:
    center = np.array([0.0, shift])
    moments = Moments(
        count=100, mean=tuple(center), std=(10.0, 10.0), min=tuple(center - spread), max=tuple(center + spread)
    )
    return Member(
        client=name, dataset=f"lab/{name}", report=DatasetReport(dataset=name, root="", units=units),
        split=Split(train=(0,)), train_frames=100, statistics=Statistics(state=moments, action=moments),
        train_digests=("0" * 64,), held_out_digests=(),
    )  # fmt: skip


def test_a_joint_ninety_degrees_away_is_told_with_its_numbers() -> None:
    found = zero_offsets([member("a"), member("b", 5), member("c", 90)], JOINTS)
    assert list(found) == ["c"]
    assert "c (lab/c): elbow_flex.pos is 90 on average, all others are from -40 to 45; " in found["c"]
    assert "shoulder_pan" not in found["c"]


@pytest.mark.parametrize("shift", [-90, 46, 1000])
def test_offsets_to_both_sides(shift) -> None:
    assert list(zero_offsets([member("a"), member("b"), member("c", shift)], JOINTS)) == ["c"]


@pytest.mark.parametrize(
    "members",
    [
        [member("a"), member("b", 20), member("c", 39)],
        [member("a"), member("c", 90)],
        [member("a"), member("b", 90), member("c", 90)],
        [member("a", units="normalized"), member("b", units="normalized"), member("c", 90)],
    ],
    ids=["overlapping", "of two either may be right", "one is like it", "other units"],
)
def test_nothing_is_told(members) -> None:
    assert "c" not in zero_offsets(members, JOINTS)
