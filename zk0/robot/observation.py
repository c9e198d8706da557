"""What a robot shows before it moves."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zk0.records import JointUnits


@dataclass(frozen=True, eq=False)
class RobotObservation:
    """The first observation of a robot, and how it names what it shows and takes."""

    positions: Mapping[str, float]
    """Joint -> position, in the robot's order."""
    action_joints: tuple[str, ...]
    """Joints of an action, in the robot's order."""
    pictures: Mapping[str, NDArray[np.uint8]]
    """Camera -> (height, width, 3) RGB."""
    units: JointUnits | None
    """Units that the robot's configuration states; None: it states none."""
