"""Units and grippers of a dataset, detected from its values, joint names and robot type."""

import numpy as np
from numpy.typing import NDArray

from zk0.data.check.contents import Contents
from zk0.data.units import MAX_RADIANS, Units, gripper_mask, infer_units, is_cartesian, is_so_arm


def detect_units(contents: Contents) -> Units | None:
    """Return the unit of states and actions; None if the values allow more than one, or are no joints."""
    rows = contents.rows
    if rows is None or rows.state is None or rows.action is None or rows.state.shape != rows.action.shape:
        return None
    feature = contents.info.features.get(contents.state_key) if contents.info else None
    if feature is not None and is_cartesian(feature.flat_names):
        return None
    return infer_units(np.concatenate([rows.state, rows.action]), detect_grippers(contents))


def detect_grippers(contents: Contents) -> NDArray[np.bool_]:
    """Return the mask (dims,) of the grippers in state and action."""
    feature = contents.info.features.get(contents.state_key) if contents.info else None
    state = contents.rows.state if contents.rows else None
    dims = 0 if state is None else int(state.shape[1])
    return gripper_mask(feature.flat_names if feature else (), dims, detect_so_arm(contents))


def detect_percent_grippers(contents: Contents) -> NDArray[np.bool_]:
    """Return the mask (dims,) of grippers that go from 0 to 100 although the joints are in radians."""
    rows, grippers = contents.rows, detect_grippers(contents)
    if rows is None or rows.state is None or rows.action is None or detect_units(contents) != "radians":
        return np.zeros(len(grippers), dtype=bool)
    return grippers & (np.nanmax(np.abs(np.concatenate([rows.state, rows.action])), axis=0) > MAX_RADIANS)


def detect_so_arm(contents: Contents) -> bool:
    """Return whether the robot is an SO-100 or SO-101 arm."""
    info = contents.info
    feature = info.features.get(contents.state_key) if info else None
    return info is not None and is_so_arm(info.robot_type, feature.flat_names if feature else ())
