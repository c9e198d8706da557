"""The simulated SO-101 arm as an environment of LeRobot's own commands.

    lerobot-eval --env.type=so101_sim --env.task=lift-red --policy.path=...

LeRobot imports it with the plugin `lerobot_robot_so101_simulated`.
"""

import importlib
from dataclasses import dataclass
from typing import Any

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

from zk0.records import ACTION, CAMERA_PREFIX, STATE
from zk0.settings.dataset_settings import SO101_JOINTS
from zk0.simulator.tasks import CAMERAS, FPS


@EnvConfig.register_subclass("so101_sim")
@dataclass
class SimulatedSO101(EnvConfig):
    """Configuration of one simulated task. Units are LeRobot's, so a policy runs as it was trained on recordings."""

    task: str | None = "lift-red"
    fps: int = FPS
    episode_length: int = 60
    image_size: int = 96

    def __post_init__(self) -> None:
        joints = (len(SO101_JOINTS),)
        self.features = {
            ACTION: PolicyFeature(FeatureType.ACTION, joints),
            "agent_pos": PolicyFeature(FeatureType.STATE, joints),
            **{
                f"pixels/{camera}": PolicyFeature(FeatureType.VISUAL, (self.image_size, self.image_size, 3))
                for camera in CAMERAS
            },
        }
        cameras = {f"pixels/{camera}": f"{CAMERA_PREFIX}{camera}" for camera in CAMERAS}
        self.features_map = {ACTION: ACTION, "agent_pos": STATE, **cameras}

    @property
    def package_name(self) -> str:
        """The module that LeRobot imports to register the environments."""
        return "zk0.simulator.gymnasium_env"

    @property
    def gym_id(self) -> str:
        """The id under which the environment is registered."""
        return f"zk0/{self.task}-v0"

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Arguments of the environment."""
        return {"image_size": self.image_size, "max_episode_steps": self.episode_length}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Register the environments: in a worker process they are not registered yet."""
        importlib.import_module(self.package_name)
        self.__dict__.update(state)
