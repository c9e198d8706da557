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


def infer_units(values: NDArray[Any]) -> Units | None:
    """The unit that rows (frames, joints) can only be in; None where several are possible.

    `normalized` is LeRobot's -100..100, known by values that stop at exactly 100 and never go beyond.

    >>> infer_units(np.array([[2048, 900.0]])), infer_units(np.array([[-1.5, 0.3]]))
    ('ticks', 'radians')
    >>> infer_units(np.array([[-100.0, 40.0]])), infer_units(np.array([[130.0, 40.0]]))
    ('normalized', 'degrees')
    """
    finite = values[np.isfinite(values).all(axis=1)] if values.ndim == 2 else values
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


def to_degrees(values: NDArray[Any], units: Units) -> NDArray[np.float32]:
    """Joint values in degrees, float32; ticks are a servo's 0 to 4095 with 2048 straight ahead.

    >>> to_degrees(np.array([2048.0, 3072.0]), "ticks").tolist()
    [0.0, 90.0]

    Raises:
        ValueError: -100..100 cannot be turned into degrees without the arm's calibration.
    """
    exact = np.asarray(values, dtype=np.float64)
    if units == "ticks":
        exact = (exact - TICKS_AT_ZERO) * 360.0 / TICKS_PER_TURN
    elif units == "radians":
        exact = np.rad2deg(exact)
    elif units == "normalized":
        raise ValueError("-100..100 cannot be turned into degrees without the arm's calibration")
    return exact.astype(np.float32)
