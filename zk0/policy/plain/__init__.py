"""Every policy of LeRobot that has no package of its own here: by LeRobot's factory, `forward` and processors."""
