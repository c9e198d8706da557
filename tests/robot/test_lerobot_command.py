"""The options of lerobot-rollout: what the contract decides, what the owner decides, and what is refused."""

import re
from pathlib import Path

import pytest

from zk0.errors import SettingsError
from zk0.records import CELLS, CameraReference, JointUnits, Moments, RobotReference
from zk0.robot.fit_check import task_mismatches
from zk0.robot.lerobot_command import RecordingOptions, RobotOptions, option_faults, rollout_options
from zk0.settings.dataset_settings import SO101_JOINTS


def reference(units: JointUnits = "degrees") -> RobotReference:
    zeros = (0.0,) * 6
    picture = (128,) * (3 * CELLS**2)
    return RobotReference(
        cameras=tuple(CameraReference(name=name, pictures=(picture,)) for name in ("overhead", "wrist")),
        joints=SO101_JOINTS,
        units=units,
        fps=30,
        tasks=("Fold the cloth",),
        state=Moments(count=2, mean=zeros, std=zeros, min=zeros, max=zeros),
        start=None,
    )


ARM = RobotOptions(port="/dev/ttyACM0", cameras={"wrist": "2", "overhead": "/dev/video0"})


def test_cameras_units_and_rate_are_the_contracts() -> None:
    assert rollout_options("a/b", "Fold the cloth", 60, ARM, reference("normalized"), extra=["--device=cpu"]) == [
        "--policy.path=a/b",
        "--robot.type=so101_follower",
        "--robot.id=my_arm",
        "--robot.port=/dev/ttyACM0",
        "--robot.use_degrees=false",
        "--robot.cameras={overhead: {type: opencv, index_or_path: /dev/video0, width: 640, height: 480, fps: 30}, "
        "wrist: {type: opencv, index_or_path: 2, width: 640, height: 480, fps: 30}}",
        "--task=Fold the cloth",
        "--fps=30",
        "--duration=60",
        "--device=cpu",
    ]


def test_lerobot_reads_the_arm_from_the_options() -> None:
    """The real command's own parser; nothing is connected."""
    from dataclasses import dataclass

    import draccus
    from lerobot.cameras.opencv import OpenCVCameraConfig
    from lerobot.robots import RobotConfig, so_follower

    @dataclass
    class Options:
        robot: RobotConfig

    options = rollout_options("a/b", "Fold the cloth", 60, ARM, reference())
    robot = draccus.parse(Options, args=[o for o in options if o.startswith("--robot.")]).robot
    assert isinstance(robot, so_follower.SO101FollowerConfig)
    assert (robot.id, robot.port, robot.use_degrees) == ("my_arm", "/dev/ttyACM0", True)
    assert robot.cameras["wrist"] == OpenCVCameraConfig(index_or_path=2, fps=30, width=640, height=480)


def test_a_recording_is_episodic_and_with_a_leader_dagger(tmp_path: Path) -> None:
    kept = RecordingOptions(folder=tmp_path / "tries", episodes=3)
    found = rollout_options("p", "t", 20, ARM, reference(), kept)
    assert "--strategy.type=episodic" in found
    assert not [o for o in found if o.startswith(("--duration", "--teleop"))]
    assert {
        "--dataset.repo_id=local/rollout_tries", f"--dataset.root={tmp_path}/tries", "--dataset.push_to_hub=false",
        "--dataset.num_episodes=3", "--dataset.episode_time_s=20", "--dataset.fps=30",
    } <= {*found}  # fmt: skip
    corrected = rollout_options("p", "t", 20, ARM, reference(), kept.model_copy(update={"leader": "/dev/ttyACM1"}))
    assert {
        "--strategy.type=dagger", "--teleop.type=so101_leader", "--teleop.port=/dev/ttyACM1", "--teleop.id=my_leader",
        "--teleop.use_degrees=true",
    } <= {*corrected}  # fmt: skip
    koch = kept.model_copy(update={"leader": "/dev/ttyACM1", "leader_type": "koch_leader", "leader_id": "left"})
    other = rollout_options("p", "t", 20, ARM, reference(), koch)
    assert {"--teleop.type=koch_leader", "--teleop.id=left"} <= {*other}
    assert not [o for o in other if o.startswith("--teleop.use_degrees")]


@pytest.mark.parametrize(
    ("robot", "extra", "faults"),
    [
        (ARM, [], []),
        (ARM, ["--fps=50"], ["--fps=50: zk0 decides this option; use the option of `zk0 arm run` instead"]),
        (
            RobotOptions(cameras={"wrist": "0", "top": "1"}),
            [],
            [
                "--port is missing: the port of the so101_follower, as lerobot-find-port prints it",
                "--camera overhead=NUMBER is missing: the numbers that lerobot-find-cameras prints",
                "--camera top: the policy has no such camera, only overhead, wrist",
            ],
        ),
        (
            RobotOptions(type="so101_simulated", port="p", cameras={"top": "0"}),
            [],
            [
                "--port has no effect with --robot so101_simulated: the simulated arm has its own",
                "--camera has no effect with --robot so101_simulated: the simulated arm has its own",
            ],
        ),
        (
            RobotOptions(type="koch_follower", port="p"),
            [],
            ["--port has no effect with --robot koch_follower: give its own options after --"],
        ),
    ],
)
def test_all_that_cannot_be_is_refused_at_once(robot: RobotOptions, extra: list[str], faults: list[str]) -> None:
    assert option_faults(robot, ("overhead", "wrist"), extra) == faults
    if faults:
        with pytest.raises(SettingsError, match=re.escape("; ".join(faults))):
            rollout_options("p", "t", 20, robot, reference(), extra=extra)


def test_a_task_is_compared_only_if_the_training_data_has_some() -> None:
    without = reference().model_copy(update={"tasks": ()})
    assert list(task_mismatches("Fold the cloth", without)) == []
    (found,) = task_mismatches("Fold a cloth", reference())
    assert found.advice == "did you mean --task 'Fold the cloth'?"
