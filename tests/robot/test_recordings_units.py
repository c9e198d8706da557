"""The units of recordings with which an arm is compared: stated, seen in the values, or asked for."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from zk0.data.dataset_writer import RecordedFrame, write_dataset
from zk0.errors import DatasetError
from zk0.records import JointUnits, Moments
from zk0.robot.joint_fit import joint_mismatches
from zk0.robot.observation import RobotObservation
from zk0.robot.read_reference import recordings_reference

JOINTS = ("base", "arm", "hand")


def recordings(folder: Path, largest: float) -> Path:
    """Two episodes whose joints go up to this value."""
    rng = np.random.default_rng(0)

    def episode() -> list[RecordedFrame]:
        states = np.cumsum(rng.uniform(0.2, 1, (20, 3)), axis=0)
        states = (largest * states / states.max(0)).astype(np.float32)
        images = {"wrist": rng.integers(0, 255, (64, 64, 3), np.uint8)}
        return [RecordedFrame(s, a, images, "Push") for s, a in pairwise(states)]

    write_dataset(folder, [episode(), episode()], fps=10, joints=JOINTS, robot_type="other_arm")
    return folder


@pytest.mark.parametrize(
    ("largest", "stated", "found"),
    [(2.5, None, "radians"), (90.5, "radians", "radians"), (90.5, "normalized", "normalized"), (150, None, "degrees")],
)
def test_units_are_stated_or_seen(tmp_path: Path, largest: float, stated: JointUnits | None, found: JointUnits) -> None:
    folder = recordings(tmp_path / "arm", largest)
    assert recordings_reference("local:arm", folder, ("wrist",), {}, stated).units == found


def test_units_that_values_do_not_show_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as raised:
        recordings_reference("local:arm", recordings(tmp_path / "arm", 90.5), ("wrist",), {}, None)
    assert str(raised.value) == (
        "local:arm: units not known; state them with --units, if they are one of degrees, radians, normalized "
        "(LeRobot's -100..100)"
    )


def test_a_robot_in_degrees_does_not_fit_a_policy_in_radians(tmp_path: Path) -> None:
    reference = recordings_reference("local:arm", recordings(tmp_path / "arm", 2.5), ("wrist",), {}, None)
    assert isinstance(reference.start, Moments)
    pose = dict(zip(JOINTS, reference.start.mean, strict=True))
    (found,) = joint_mismatches(RobotObservation(pose, JOINTS, {}, "degrees"), reference)
    assert (found.rule, found.found) == ("units", "a robot in degrees")
    assert found.advice == "use the robot type of the recordings; this one knows degrees and -100..100"
    assert list(joint_mismatches(RobotObservation(pose, JOINTS, {}, None), reference)) == []
