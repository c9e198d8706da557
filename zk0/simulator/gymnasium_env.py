"""The simulated arm as a Gymnasium environment, with the observations that LeRobot's evaluation expects.

Importing this module registers `zk0/<task>-v0` for every task; `zk0.simulator.lerobot_env` makes them known to LeRobot.
"""

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict
from numpy.typing import NDArray

from zk0.settings.dataset_settings import SO101_JOINTS, SimulatorSettings
from zk0.simulator.arm import Observation, SimulatedArm
from zk0.simulator.tasks import CAMERAS, FPS, TASKS, find_task

MAX_STEPS = 60
"""Limit of an episode."""


class SimulatedArmEnv(gymnasium.Env[Any, NDArray[np.float32]]):
    """One arm and one task; states and actions are in LeRobot's units (degrees, the gripper 0 to 100).

    An observation has `agent_pos` (6,) and `pixels`: camera -> (size, size, 3) RGB. The reward is 1 on success, which
    ends the episode, else 0.

    Args:
        task: name of a task, such as lift-red.
        image_size: side of the square images, in pixels.
        render_mode: only rgb_array.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": FPS}

    def __init__(self, task: str, image_size: int = 96, render_mode: str = "rgb_array") -> None:
        self.task = find_task(task).text
        self.task_description = self.task
        self.render_mode = render_mode
        joints, image = len(SO101_JOINTS), (image_size, image_size, 3)
        self.observation_space = Dict(
            {
                "agent_pos": Box(-np.inf, np.inf, (joints,), np.float32),
                "pixels": Dict({camera: Box(0, 255, image, np.uint8) for camera in CAMERAS}),
            }
        )
        self.action_space = Box(-np.inf, np.inf, (joints,), np.float32)
        self._arm = SimulatedArm(task, SimulatorSettings(image_size=image_size), render=True)
        self._open = False
        self._last: Observation | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start the episode of a seed; without a seed, draw one from the generator that the last seed started."""
        super().reset(seed=seed)
        if not self._open:
            self._arm.__enter__()
            self._open = True
        drawn = int(self.np_random.integers(2**31)) if seed is None else seed
        return self._convert(self._arm.reset(drawn)), {"is_success": False}

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Hold a joint target for 1/FPS second."""
        step = self._arm.step(action)
        return self._convert(step.observation), float(step.success), step.success, False, {"is_success": step.success}

    def render(self) -> NDArray[np.uint8]:
        """Return the last images of all cameras side by side."""
        if self._last is None:
            raise gymnasium.error.ResetNeeded("call reset() before render()")
        return np.concatenate([self._last.images[camera] for camera in CAMERAS], axis=1)

    def close(self) -> None:
        """End the simulation."""
        self._arm.__exit__(None, None, None)
        self._open = False

    def _convert(self, observation: Observation) -> dict[str, Any]:
        """Keep an observation for `render` and return it in the form of the observation space."""
        self._last = observation
        return {"agent_pos": observation.state, "pixels": dict(observation.images)}


for _name in TASKS:
    gymnasium.register(
        id=f"zk0/{_name}-v0",
        entry_point="zk0.simulator.gymnasium_env:SimulatedArmEnv",
        kwargs={"task": _name},
        max_episode_steps=MAX_STEPS,
    )
