"""A saved policy on a robot: what the robot must be like, whether it fits, and LeRobot's command that runs it."""
