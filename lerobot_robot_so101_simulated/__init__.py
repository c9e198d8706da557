"""LeRobot plugin: zk0's simulated arm as the robot `so101_simulated` and as the environment `so101_sim`.

LeRobot's commands import every distribution whose name begins with `lerobot_robot_`, which registers both.
"""

from zk0.simulator.lerobot_env import SimulatedSO101
from zk0.simulator.lerobot_robot import SimulatedFollower, SimulatedFollowerConfig

__all__ = ["SimulatedFollower", "SimulatedFollowerConfig", "SimulatedSO101"]
