"""Compare the joints of a robot with the training data: names, order, units, and where episodes begin."""

from collections.abc import Iterator
from itertools import combinations
from math import degrees

import numpy as np
from numpy.typing import NDArray

from zk0.name_lists import join_names
from zk0.records import JointUnits, Mismatch, Moments, RobotReference
from zk0.robot.observation import RobotObservation

SMALLEST_TOLERANCE: dict[JointUnits, float] = {"degrees": 5.0, "normalized": 5.0, "radians": 0.09}
"""A joint may begin so far outside of the recorded starts, at least..."""
SHARE_OF_RANGE = 0.05
"""...or this share of the range of its states..."""
START_DEVIATIONS = 2.0
"""...or so many standard deviations of the recorded starts, whichever is most."""
_SHOWN = 3
JointValues = NDArray[np.float64]


def joint_mismatches(seen: RobotObservation, reference: RobotReference) -> Iterator[Mismatch]:
    """Yield a mismatch for other joints, another order, other units, and a pose in which no episode begins."""
    names = list(_name_mismatches(seen, reference))
    yield from names
    if seen.units is None and reference.units != "radians":  # radians and degrees are told apart by the pose
        yield Mismatch(
            rule="units",
            found="a robot whose options state no units",
            expected=f"{reference.units}, as the policy was trained",
            advice="look up in which units it reports its joints, and accept this rule if these are the same",
        )
    elif seen.units not in (None, reference.units):
        yield Mismatch(
            rule="units",
            found=f"a robot in {seen.units}",
            expected=f"{reference.units}, as the policy was trained",
            advice=_units_advice(reference.units),
        )
    if not names and seen.units in (None, reference.units) and (pose := _pose_mismatch(seen, reference)):
        yield pose


def _units_advice(units: JointUnits) -> str:
    if units == "radians":
        return "use the robot type of the recordings; this one knows degrees and -100..100"
    return f"set --robot.use_degrees={str(units == 'degrees').lower()}"


def _name_mismatches(seen: RobotObservation, reference: RobotReference) -> Iterator[Mismatch]:
    for what, found in (("observations", tuple(seen.positions)), ("actions", seen.action_joints)):
        if found == reference.joints:
            continue
        same = sorted(found) == sorted(reference.joints)
        yield Mismatch(
            rule="joint-order" if same else "joint-names",
            found=f"{what} with {', '.join(found) or 'no joint'}",
            expected=", ".join(reference.joints),
            advice="the policy sends its actions in this order: use the robot type of the recordings",
        )


def _pose_mismatch(seen: RobotObservation, reference: RobotReference) -> Mismatch | None:
    """Return the mismatch of a pose in which no recorded episode begins, with its likely cause."""
    positions = np.array([seen.positions[name] for name in reference.joints])
    bounds, tolerance = reference.start or reference.state, _tolerances(reference)
    far = _distances(positions, bounds) > tolerance
    if np.isfinite(positions).all() and not far.any():
        return None
    rule, cause = _likely_cause(positions, bounds, tolerance, reference)
    named = [
        f"{reference.joints[i]} at {positions[i]:.1f} (recordings begin at {bounds.min[i]:.1f} to {bounds.max[i]:.1f})"
        for i in np.flatnonzero(far | ~np.isfinite(positions))
    ]
    return Mismatch(
        rule=rule,
        found=join_names(named, _SHOWN),
        expected="the pose in which recordings begin",
        advice=cause,
    )


def _tolerances(reference: RobotReference) -> JointValues:
    width = np.array(reference.state.max) - np.array(reference.state.min)
    spread = np.array((reference.start or reference.state).std)
    return np.maximum.reduce(
        [SHARE_OF_RANGE * width, START_DEVIATIONS * spread, np.full(len(width), SMALLEST_TOLERANCE[reference.units])]
    )


def _distances(positions: JointValues, bounds: Moments) -> JointValues:
    """How far each joint is outside of the bounds; 0 inside."""
    below, above = np.array(bounds.min) - positions, positions - np.array(bounds.max)
    return np.maximum(0.0, np.maximum(below, above))


def _likely_cause(
    positions: JointValues, bounds: Moments, tolerance: JointValues, reference: RobotReference
) -> tuple[str, str]:
    """Return the rule that is broken, and what to do about it."""

    def fits(other: JointValues) -> bool:
        return bool((_distances(other, bounds) <= tolerance).all())

    if reference.units == "degrees" and fits(_from_radians(positions, reference.joints)):
        return "units", "these are radians: let the robot report degrees (--robot.use_degrees=true)"
    if reference.units == "radians" and fits(np.radians(positions)):
        return "units", "these are degrees: use the robot type of the recordings"
    pair = next((_pair_text(reference, pair) for pair in _pairs(positions) if fits(_exchanged(positions, pair))), "")
    if (_distances(positions, bounds) > tolerance).sum() > 1:
        if pair:
            return "joint-order", f"{pair} look exchanged: check the ids of the motors"
        return "start-pose", "check the units and the calibration (lerobot-calibrate), and move the arm to the start"
    advice = "move the joint to the start; if it looks right there, calibrate again (lerobot-calibrate)"
    return "joint-offset", f"{advice}, or {pair} are exchanged: check the ids of the motors" if pair else advice


def _pairs(positions: JointValues) -> Iterator[tuple[int, int]]:
    return combinations(range(len(positions)), 2)


def _exchanged(positions: JointValues, pair: tuple[int, int]) -> JointValues:
    order = np.arange(len(positions))
    order[[*pair]] = order[[*reversed(pair)]]
    return positions[order]


def _pair_text(reference: RobotReference, pair: tuple[int, int]) -> str:
    return " and ".join(reference.joints[joint] for joint in pair)


def _from_radians(positions: JointValues, joints: tuple[str, ...]) -> JointValues:
    """JointValues in degrees if they are in radians; a gripper's may be 0 to 100 in both."""
    return np.array([p if "gripper" in name else degrees(p) for name, p in zip(joints, positions, strict=True)])
