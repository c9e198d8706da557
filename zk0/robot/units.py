"""Which unit a data set's joints are in, and how to get to degrees."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zk0.session import SO101_JOINTS

Units = Literal["degrees", "radians", "ticks", "normalized"]

TICKS_PER_TURN = 4096
TICKS_AT_ZERO = 2048
MAX_DEGREES = 360.0
MAX_RADIANS = 3.5


def is_so_arm(robot_type: str | None, names: Sequence[str]) -> bool:
    """Whether this is an SO-100 or SO-101 arm, by its type or the names of its joints.

    >>> is_so_arm("so101_follower", ()), is_so_arm("koch", ("main_elbow_flex",)), is_so_arm("Unitree_G1", ("hip",))
    (True, True, False)
    """
    kind = (robot_type or "").lower().replace("-", "").replace("_", "")
    plain = {n.removesuffix(".pos") for n in SO101_JOINTS}
    joints = {n.removesuffix(".pos").removeprefix("main_") for n in names}
    return "so100" in kind or "so101" in kind or bool(joints and joints <= plain)


def are_grippers(names: Sequence[str], dims: int, so_arm: bool) -> NDArray[np.bool_]:
    """Which dimensions open and close a hand: LeRobot stores those as 0 to 100 beside joints in degrees.

    Without names, the sixth joint of each SO arm.

    >>> are_grippers(("elbow_flex.pos", "gripper.pos"), 2, so_arm=True).tolist()
    [False, True]
    """
    named = np.asarray([any(word in n.lower() for word in ("gripper", "jaw", "claw")) for n in names], dtype=bool)
    if len(named) == dims and named.any():
        return named
    return np.arange(dims) % 6 == 5 if so_arm and dims % 6 == 0 else np.zeros(dims, dtype=bool)


def infer_units(values: NDArray[Any], grippers: NDArray[np.bool_] | None = None) -> Units | None:
    """The unit that rows (frames, dims) of joints can only be in; None where several are possible.

    `normalized` is LeRobot's -100..100, known by joints that stop at exactly 100 and never go beyond; the
    grippers say nothing about that.

    >>> infer_units(np.array([[2048, 900.0]])), infer_units(np.array([[-1.5, 0.3]]))
    ('ticks', 'radians')
    >>> infer_units(np.array([[-100.0, 40.0]])), infer_units(np.array([[130.0, 40.0]]))
    ('normalized', 'degrees')
    >>> infer_units(np.array([[-80.0, 100.0]]), np.array([False, True])) is None
    True
    """
    joints = values if grippers is None or grippers.all() else values[:, ~grippers]
    finite = joints[np.isfinite(joints).all(axis=1)]
    if not finite.size or not finite.any():
        return None
    largest = float(np.abs(finite).max())
    if largest > MAX_DEGREES and finite.min() >= 0 and largest <= TICKS_PER_TURN and (finite == np.floor(finite)).all():
        return "ticks"
    if largest <= MAX_RADIANS:
        return "radians"
    if largest == 100.0:
        return "normalized"
    return "degrees" if 100.0 < largest <= MAX_DEGREES else None


def to_degrees(values: NDArray[Any], units: Units, percent: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
    """Rows (frames, dims) in degrees, float32; ticks are a servo's 0 to 4095 with 2048 straight ahead.

    Dimensions in `percent` (grippers from 0 to 100) stay as they are.

    >>> to_degrees(np.array([[2048.0, 3072.0]]), "ticks").tolist()
    [[0.0, 90.0]]

    Raises:
        ValueError: -100..100 cannot be turned into degrees without the arm's calibration.
    """
    exact = np.asarray(values, dtype=np.float64)
    if units == "ticks":
        turned = (exact - TICKS_AT_ZERO) * 360.0 / TICKS_PER_TURN
    elif units == "radians":
        turned = np.rad2deg(exact)
    elif units == "normalized":
        raise ValueError("-100..100 cannot be turned into degrees without the arm's calibration")
    else:
        turned = exact
    return (turned if percent is None else np.where(percent, exact, turned)).astype(np.float32)
