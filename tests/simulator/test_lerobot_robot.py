"""The simulated arm as a robot of LeRobot."""

import importlib.metadata
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zk0.errors import SimulatorError
from zk0.settings.dataset_settings import SO101_JOINTS, SimulatorSettings
from zk0.simulator.arm import SimulatedArm
from zk0.simulator.expert import plan_trajectory

SIZE = 32
pytestmark = pytest.mark.usefixtures("images")


def robot(folder: Path, **settings: Any) -> Any:
    """A robot as LeRobot makes it from its configuration."""
    from lerobot.robots import make_robot_from_config

    from zk0.simulator.lerobot_robot import SimulatedFollowerConfig

    return make_robot_from_config(
        SimulatedFollowerConfig(id="sim", calibration_dir=folder, image_size=SIZE, **settings)
    )


def test_lerobot_finds_the_plugin_by_its_name() -> None:
    import lerobot_robot_so101_simulated as plugin

    assert plugin.__name__ in [d.metadata["Name"] for d in importlib.metadata.distributions()]
    assert {plugin.SimulatedFollowerConfig(id="a").type, plugin.SimulatedSO101().type} == {
        "so101_simulated",
        "so101_sim",
    }


def test_the_experts_actions_succeed_and_the_next_attempt_begins(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO)
    with SimulatedArm("lift-red", SimulatorSettings(image_size=SIZE), render=True) as arm:
        first = arm.reset(9004)
        actions = plan_trajectory(arm)
        following = arm.reset(9005)
    found = robot(tmp_path, task="lift-red", seed=9004)
    assert found.action_features == dict.fromkeys(SO101_JOINTS, float)
    assert found.observation_features["wrist"] == (SIZE, SIZE, 3)
    with found:
        seen = found.get_observation()
        assert seen.keys() == found.observation_features.keys()
        assert [seen[joint] for joint in SO101_JOINTS] == first.state.tolist()
        np.testing.assert_array_equal(seen["overhead"], first.images["overhead"])
        sent = 0
        while "success" not in caplog.text:
            action = dict(zip(SO101_JOINTS, actions[sent].tolist(), strict=True))
            assert found.send_action(action) == action
            sent += 1
        assert f"lift-red, seed 9004: success after {sent} actions" in caplog.text
        again = found.get_observation()
        assert [again[joint] for joint in SO101_JOINTS] == following.state.tolist()
        np.testing.assert_array_equal(again["wrist"], following.images["wrist"])
    assert not found.is_connected


def test_an_attempt_ends_after_its_last_action(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.INFO)
    with robot(tmp_path, seed=7, max_steps=2) as found:
        still = {joint: found.get_observation()[joint] for joint in SO101_JOINTS}
        for _ in range(4):
            found.send_action(still)
    assert [r.getMessage() for r in caplog.records if "seed" in r.getMessage()] == [
        "lift-red, seed 7: no success after 2 actions",
        "lift-red, seed 8: no success after 2 actions",
    ]


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

    found = robot(tmp_path)
    for use in (found.get_observation, found.disconnect, lambda: found.send_action({})):
        with pytest.raises(DeviceNotConnectedError, match="SimulatedFollower is not connected"):
            use()
    with found:
        with pytest.raises(DeviceAlreadyConnectedError, match="already connected"):
            found.connect()
        with pytest.raises(
            SimulatorError, match=r"an action without shoulder_lift.pos, .*; expected shoulder_pan.pos, "
        ):
            found.send_action({"shoulder_pan.pos": 0.0})
    with pytest.raises(ValueError, match="task 'fly' does not exist"):
        robot(tmp_path, task="fly")
    with pytest.raises(ValueError, match="max_steps is 0, expected at least 1"):
        robot(tmp_path, max_steps=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("inference", "seconds"), [("sync", 2), ("rtc", 15)])
def test_the_command_lerobot_rollout(tmp_path: Path, inference: str, seconds: int) -> None:
    """The policy `base` by its folder, from another directory: each attempt of one action is logged."""
    from zk0.policy.published_config import BASE_POLICY_FOLDER

    command = [str(Path(sys.executable).with_name("lerobot-rollout")), f"--policy.path={BASE_POLICY_FOLDER}"]
    command += ["--device=cpu", "--robot.type=so101_simulated", "--robot.task=lift-green", "--robot.max_steps=1"]
    command += [
        f"--robot.calibration_dir={tmp_path}",
        "--task=Pick up the green cube",
        "--fps=10",
        f"--duration={seconds}",
    ]
    command += ["--return_to_initial_position=false", "--play_sounds=false", f"--inference.type={inference}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "lift-green, seed 9000: no success after 1 actions" in done.stdout + done.stderr
    assert "RTC inference error" not in done.stdout + done.stderr
