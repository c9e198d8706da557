"""Units of joint values: recognize them from the numbers, and convert them to degrees."""

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zk0.settings.dataset_settings import SO101_JOINTS

Units = Literal["degrees", "radians", "ticks", "normalized"]
"""`ticks` are raw servo positions; `normalized` is LeRobot's -100..100."""

TICKS_PER_TURN = 4096
TICKS_AT_ZERO = 2048
MAX_DEGREES = 360.0
"""Largest plausible angle of a joint."""
MAX_RADIANS = 3.5
"""Largest absolute value that is taken for radians (a little more than pi)."""


_NUMBERED = re.compile(
    r"([a-z_]+[0-9]*[_.])?([a-z_]*(dim|joint|motor|state|action|servo|axis|j|m)[_.]?)?[0-9]+([_.]?pos)?"
)
"""Names that only count the dimensions."""
_EFFECTOR = re.compile(r"(.*[^a-z])?(ee|eef|tcp)([^a-z].*)?|.*effector.*")
"""Names that speak of the end effector."""
ROBUST_SHARE = 0.99
"""Share of the rows whose smallest and largest values decide; single readings beyond it are glitches."""


def is_so_arm(robot_type: str | None, names: Sequence[str]) -> bool:
    """Return whether this is an SO-100 or SO-101 arm, by the names of its joints, or without names by its robot type.

    A name is that of a joint also with a prefix (`left_elbow_flex`); names such as `dim_0` and `3` state nothing.

    >>> is_so_arm("so101_follower", ()), is_so_arm("koch", ("main_elbow_flex",)), is_so_arm("Unitree_G1", ("hip",))
    (True, True, False)
    >>> is_so_arm("so101_follower", ("ee.x", "ee.y")), is_so_arm("so101_follower", ("motor_0", "arm1_j1"))
    (False, True)
    """
    if is_cartesian(names):
        return False
    kind = (robot_type or "").lower().replace("-", "").replace("_", "")
    plain = tuple(n.removesuffix(".pos") for n in SO101_JOINTS)
    joints = {n.lower().removesuffix(".pos") for n in names if not _NUMBERED.fullmatch(n.lower())}
    return all(j.endswith(plain) for j in joints) if joints else "so100" in kind or "so101" in kind


def is_cartesian(names: Sequence[str]) -> bool:
    """Return whether dimensions are a pose of the end effector, which has no joint units.

    >>> is_cartesian(("ee.x", "ee.y", "ee.z", "gripper")), is_cartesian(("wrist_roll.pos", "gripper.pos"))
    (True, False)
    >>> is_cartesian(("ee_0", "ee_1")), is_cartesian(("left_tcp_pose_0",)), is_cartesian(("knee_0", "ee_gripper"))
    (True, True, False)
    """
    words = [n.lower() for n in names]
    last = {re.split(r"[._ ]", n.removesuffix(".pos"))[-1] for n in words}
    named = any(_EFFECTOR.fullmatch(n) and not _is_gripper(n) for n in words)
    return named or {"x", "y"} <= last or {"wx", "wy"} <= last


def _is_gripper(name: str) -> bool:
    return any(word in name.lower() for word in ("gripper", "jaw", "claw"))


def gripper_mask(names: Sequence[str], dims: int, so_arm: bool) -> NDArray[np.bool_]:
    """Return the mask (dims,) of the grippers, which LeRobot stores as 0 (closed) to 100 (open).

    Without names, it is the sixth joint of each SO arm.

    >>> gripper_mask(("elbow_flex.pos", "gripper.pos"), 2, so_arm=True).tolist()
    [False, True]
    """
    named = np.asarray([_is_gripper(n) for n in names], dtype=bool)
    if len(named) == dims and named.any():
        return named
    return np.arange(dims) % 6 == 5 if so_arm and dims % 6 == 0 else np.zeros(dims, dtype=bool)


def infer_units(values: NDArray[Any], grippers: NDArray[np.bool_] | None = None) -> Units | None:
    """Return the unit of joint values (frames, dims) if the numbers allow only one; else None.

    Single readings beyond all others are glitches and do not decide. `normalized` is recognized by joints that stop
    at exactly 100, more often than anything exceeds it; in whole numbers, 100 is an angle like any other. Grippers are
    left out, because they go from 0 to 100 in every unit.

    >>> infer_units(np.array([[2048, 900.0]])), infer_units(np.array([[-1.5, 0.3]]))
    ('ticks', 'radians')
    >>> infer_units(np.array([[-100.0, 40.5]])), infer_units(np.array([[130.0, 40.0]]))
    ('normalized', 'degrees')
    >>> infer_units(np.array([[-80.0, 100.0]]), np.array([False, True])) is None
    True
    >>> infer_units(np.array([[-80.0, 100.0]])), infer_units(np.array([[99.5, 20], [100, 20], [104, 20]]))
    (None, None)
    """
    joints = values if grippers is None or grippers.all() else values[:, ~grippers]
    finite = joints[np.isfinite(joints).all(axis=1)]
    if not finite.size or not finite.any():
        return None
    rows = np.abs(finite).max(axis=1)
    largest = float(np.quantile(rows, ROBUST_SHARE, method="lower"))
    smallest = float(np.quantile(finite.min(axis=1), 1 - ROBUST_SHARE, method="higher"))
    are_integers = (finite == np.floor(finite)).all(axis=1).mean() >= ROBUST_SHARE
    if are_integers and smallest >= 0 and MAX_DEGREES < largest <= TICKS_PER_TURN:
        return "ticks"
    if largest <= MAX_RADIANS:
        return "radians"
    if largest <= 100.0 and not are_integers and (rows == 100.0).sum() > (rows > 100.0).sum():
        return "normalized"
    return "degrees" if 100.0 < largest <= MAX_DEGREES else None


def to_degrees(values: NDArray[Any], units: Units, unchanged: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
    """Convert joint values (frames, dims) to degrees, float32; a tick is 1/4096 of a turn, 2048 is zero.

    Dimensions in the mask `unchanged` (grippers from 0 to 100) are not converted.

    >>> to_degrees(np.array([[2048.0, 3072.0]]), "ticks").tolist()
    [[0.0, 90.0]]

    Raises:
        ValueError: the values are normalized; their conversion needs the arm's calibration.
    """
    exact = np.asarray(values, dtype=np.float64)
    if units == "ticks":
        degrees = (exact - TICKS_AT_ZERO) * 360.0 / TICKS_PER_TURN
    elif units == "radians":
        degrees = np.rad2deg(exact)
    elif units == "normalized":
        raise ValueError("normalized values (-100..100) cannot be converted to degrees without the arm's calibration")
    else:
        degrees = exact
    return (degrees if unchanged is None else np.where(unchanged, exact, degrees)).astype(np.float32)
