"""A robot of LeRobot, as `lerobot-rollout` builds it from its options, and its first observation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import draccus
import numpy as np
from draccus.utils import DraccusException

from zk0.errors import RobotError, first_line
from zk0.records import JointUnits
from zk0.robot.observation import RobotObservation

SETTLING_OBSERVATIONS = 5
"""Observations that are read before the one that counts: cameras adjust their exposure in the first pictures."""
ROBOT_PREFIX = "--robot."


def observe_robot(options: Sequence[str]) -> RobotObservation:
    """Connect the robot that these options describe, read an observation without any motion, and disconnect.

    Args:
        options: of `lerobot-rollout`; those that begin with `--robot.` are read.

    Raises:
        RobotError: an option is wrong, the robot or a camera cannot be reached, or it shows something impossible.
    """
    with _connected([option for option in options if option.startswith(ROBOT_PREFIX)]) as robot:
        try:
            for _ in range(SETTLING_OBSERVATIONS):
                seen = robot.get_observation()
        except (OSError, RuntimeError, ValueError, TypeError) as e:
            raise RobotError(f"the robot shows nothing ({type(e).__name__}: {first_line(e)}); check its cables") from e
        return _observation(robot, seen)


def reads_keys() -> bool:
    """Whether LeRobot can read the keys of a person: from a display, or from the terminal of this process."""
    import sys

    from lerobot.utils.keyboard_input import pynput_can_capture

    return sys.stdin.isatty() or bool(pynput_can_capture())


@contextmanager
def _connected(options: list[str]) -> Iterator[Any]:
    from lerobot.robots import RobotConfig, make_robot_from_config
    from lerobot.utils.import_utils import register_third_party_plugins

    @dataclass
    class Options:
        robot: RobotConfig

    _register_robots_and_cameras()
    register_third_party_plugins()
    _check_type(options, sorted(RobotConfig.get_known_choices()))
    try:
        robot = make_robot_from_config(draccus.parse(Options, args=options).robot)
        robot.connect(calibrate=False)
    except (OSError, RuntimeError, ValueError, TypeError, ImportError, DraccusException, SystemExit) as e:
        raise RobotError(
            f"the robot cannot be connected ({type(e).__name__}: {first_line(e, 300)}); check the port "
            "(lerobot-find-port), the cameras (lerobot-find-cameras) and its options"
        ) from e
    try:
        if not robot.is_calibrated:
            raise RobotError("the robot is not calibrated as its motors are; run lerobot-calibrate with its options")
        yield robot
    finally:
        robot.disconnect()


def _check_type(options: list[str], known: list[str]) -> None:
    prefix = f"{ROBOT_PREFIX}type="
    for name in (option.removeprefix(prefix) for option in options if option.startswith(prefix)):
        if name not in known:
            near = get_close_matches(name, known, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise RobotError(f"no robot {name!r}, expected one of {', '.join(known)}{meant}")


def _register_robots_and_cameras() -> None:
    """Import LeRobot's robots and cameras, as `lerobot-rollout` does: its parser knows only what was imported."""
    from lerobot import cameras, robots

    for package in (cameras, robots):
        for module in iter_modules(package.__path__):
            if module.ispkg:
                import_module(f"{package.__name__}.{module.name}")


def _observation(robot: Any, seen: dict[str, Any]) -> RobotObservation:
    joints = [name for name, kind in robot.observation_features.items() if not isinstance(kind, tuple)]
    pictures = {name: np.asarray(seen[name]) for name in robot.observation_features if name not in joints}
    if bad := [name for name, one in pictures.items() if one.ndim != 3 or one.shape[2] != 3 or min(one.shape) < 3]:
        raise RobotError(f"camera {bad[0]} gives the shape {pictures[bad[0]].shape}, expected height, width and 3")
    return RobotObservation(
        positions={name: float(seen[name]) for name in joints},
        action_joints=tuple(robot.action_features),
        pictures=pictures,
        units=_stated_units(robot.config),
    )


def _stated_units(config: Any) -> JointUnits | None:
    in_degrees = getattr(config, "use_degrees", None)
    return None if in_degrees is None else "degrees" if in_degrees else "normalized"
