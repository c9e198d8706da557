"""The simulated SO-101 arm for lerobot's own commands: `--env.type=so101_sim --env.task=lift-red`.

lerobot-eval finds it with `--env.discover_packages_path=zk0.robot.environment` (which must name a package).
"""

import importlib
from dataclasses import dataclass
from typing import Any

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

from zk0.records import ACTION, CAMERA_PREFIX, STATE
from zk0.session import SO101_JOINTS

CAMERAS = ("overhead", "wrist")


@EnvConfig.register_subclass("so101_sim")
@dataclass
class SimulatedSO101(EnvConfig):
    """One task of the simulator; units are LeRobot's, so a policy trained on its recordings acts as it is."""

    task: str | None = "lift-red"
    fps: int = 10
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
        """lerobot imports it, which registers the environments; this room does not know the simulator."""
        return "zk0.simulator.gymnasium_env"

    @property
    def gym_id(self) -> str:
        """The registered name."""
        return f"zk0/{self.task}-v0"

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """What the environment is made with."""
        return {"image_size": self.image_size, "max_episode_steps": self.episode_length}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a worker process the environments are not registered yet."""
        importlib.import_module(self.package_name)
        self.__dict__.update(state)
