"""The simulated SO-101 arm as a LeRobot robot, to rehearse with LeRobot's own commands before an arm moves.

    lerobot-rollout --robot.type=so101_simulated --robot.task=lift-red --fps=10 --policy.path=... --task=...

LeRobot looks for the robot's class in the package of its configuration.
"""

from zk0.simulator.lerobot_robot.simulated_follower import SimulatedFollower
from zk0.simulator.lerobot_robot.simulated_follower_config import SimulatedFollowerConfig

__all__ = ["SimulatedFollower", "SimulatedFollowerConfig"]
