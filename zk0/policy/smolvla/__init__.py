"""SmolVLA by LeRobot: building it, its tiny geometry, the cached output of its frozen layers, its action expert."""
