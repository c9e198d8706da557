"""A robot of LeRobot that is zk0's simulated arm."""

import logging
from typing import Any

import numpy as np
from lerobot.robots import Robot
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from zk0.errors import SimulatorError
from zk0.settings.dataset_settings import SO101_JOINTS, SimulatorSettings
from zk0.simulator.arm import Observation, SimulatedArm
from zk0.simulator.lerobot_robot.simulated_follower_config import SimulatedFollowerConfig
from zk0.simulator.tasks import CAMERAS


class SimulatedFollower(Robot):
    """An SO-101 arm in simulation, with the joints, units and camera names of zk0's simulated recordings.

    Simulated time passes with actions only: each holds a joint target for one step. An attempt ends by success or after
    `max_steps` actions; the result is logged, and the next attempt begins in the scene of the next seed.

    Raises:
        SimulatorError: the task does not exist, or `max_steps` is not positive.
    """

    config_class = SimulatedFollowerConfig
    name = "so101_simulated"

    def __init__(self, config: SimulatedFollowerConfig) -> None:
        self._observation: Observation | None = None
        if config.max_steps < 1:
            raise SimulatorError(f"max_steps is {config.max_steps}, expected at least 1")
        super().__init__(config)
        self.config = config
        self._arm = SimulatedArm(config.task, SimulatorSettings(image_size=config.image_size), render=True)
        self._seed, self._steps = config.seed, 0

    @property
    def observation_features(self) -> dict[str, Any]:
        """Joint positions and the shapes of the images."""
        size = self.config.image_size
        return self.action_features | dict.fromkeys(CAMERAS, (size, size, 3))

    @property
    def action_features(self) -> dict[str, Any]:
        """Joint targets: degrees, the gripper 0 (closed) to 100 (open)."""
        return dict.fromkeys(SO101_JOINTS, float)

    @property
    def is_connected(self) -> bool:
        """Whether the simulation runs."""
        return self._observation is not None

    @property
    def is_calibrated(self) -> bool:
        """Always: the simulation's joints have exact zero positions."""
        return True

    def connect(self, calibrate: bool = True) -> None:
        """Start the simulation and its first attempt.

        Raises:
            DeviceAlreadyConnectedError: it runs already.
        """
        if self.is_connected:
            raise DeviceAlreadyConnectedError(f"{self} is already connected")
        self._arm.__enter__()
        self._begin(self.config.seed)

    def calibrate(self) -> None:
        """Do nothing: there is nothing to calibrate."""

    def configure(self) -> None:
        """Do nothing: there are no motors to configure."""

    def get_observation(self) -> dict[str, Any]:
        """Return joint positions and images as they are after the last action.

        Raises:
            DeviceNotConnectedError: the simulation does not run.
        """
        seen = self._seen()
        return dict(zip(SO101_JOINTS, seen.state.tolist(), strict=True)) | dict(seen.images)

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Hold joint targets for one step; return them.

        Raises:
            DeviceNotConnectedError: the simulation does not run.
            SimulatorError: a joint is missing, or a target is not finite.
        """
        self._seen()
        if missing := [joint for joint in SO101_JOINTS if joint not in action]:
            raise SimulatorError(f"an action without {', '.join(missing)}; expected {', '.join(SO101_JOINTS)}")
        result = self._arm.step(np.array([float(action[joint]) for joint in SO101_JOINTS], dtype=np.float32))
        self._observation, self._steps = result.observation, self._steps + 1
        if result.success or self._steps == self.config.max_steps:
            ending = "success" if result.success else "no success"
            logging.info("%s, seed %d: %s after %d actions", self.config.task, self._seed, ending, self._steps)
            self._begin(self._seed + 1)
        return action

    def disconnect(self) -> None:
        """End the simulation.

        Raises:
            DeviceNotConnectedError: it does not run.
        """
        self._seen()
        self._arm.__exit__(None, None, None)
        self._observation = None

    def _begin(self, seed: int) -> None:
        self._seed, self._steps = seed, 0
        self._observation = self._arm.reset(seed)

    def _seen(self) -> Observation:
        if self._observation is None:
            raise DeviceNotConnectedError(f"{self} is not connected; call connect() first")
        return self._observation
