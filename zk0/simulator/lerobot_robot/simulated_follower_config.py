"""Settings of the simulated arm as a robot."""

from dataclasses import dataclass

from lerobot.robots.config import RobotConfig


@RobotConfig.register_subclass("so101_simulated")
@dataclass(kw_only=True)
class SimulatedFollowerConfig(RobotConfig):
    """One simulated task; images, joints and units are those of zk0's simulated recordings."""

    task: str = "lift-red"
    seed: int = 9000
    """Seed of the first attempt; each further attempt has the next one."""
    max_steps: int = 60
    """Actions after which an attempt ends without success."""
    image_size: int = 96
    """Width and height of a camera image, in pixels."""

    @property
    def use_degrees(self) -> bool:
        """Its joints are in degrees, and not in -100..100, as other robots state by an option of this name."""
        return True
