"""LeRobot datasets on disk: reading, splitting, statistics, units, check and repair."""
