"""Every broken rule of a data set, found by reading its files before LeRobot does."""

from zk0.robot.check.contract import check_contract, check_same_rate
from zk0.robot.check.dataset import check_dataset

__all__ = ["check_contract", "check_dataset", "check_same_rate"]
