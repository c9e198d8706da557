"""The door to LeRobot: data sets, their check and repair, statistics, and the policy."""
