"""The simulated arm as LeRobot's robot `so101_faulty`, with one mistake of its owner planted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from lerobot.robots.config import RobotConfig

from zk0.settings.dataset_settings import SO101_JOINTS
from zk0.simulator.lerobot_robot.simulated_follower import SimulatedFollower
from zk0.simulator.lerobot_robot.simulated_follower_config import SimulatedFollowerConfig

Seen = dict[str, Any]
HALF_RANGES = dict(zip(SO101_JOINTS, (110.0, 100.0, 97.0, 95.0, 157.0, 100.0), strict=True))
"""Degrees on either side of zero that LeRobot maps to -100..100; the gripper is 0 to 100 in both."""


def _picture(name: str, change: Callable[[Any], Any]) -> Callable[[Seen], Seen]:
    return lambda seen: seen | {name: np.ascontiguousarray(change(seen[name]))}


def _offset(joint: str, by: float) -> Callable[[Seen], Seen]:
    return lambda seen: seen | {joint: seen[joint] + by}


def _joints(change: Callable[[str, float], float]) -> Callable[[Seen], Seen]:
    return lambda seen: seen | {joint: change(joint, seen[joint]) for joint in SO101_JOINTS}


def _exchanged(one: str, other: str) -> Callable[[Seen], Seen]:
    return lambda seen: seen | {one: seen[other], other: seen[one]}


def _without(name: str) -> Callable[[Seen], Seen]:
    return lambda seen: {key: value for key, value in seen.items() if key != name}


def _reversed(seen: Seen) -> Seen:
    return {joint: seen[joint] for joint in reversed(SO101_JOINTS)} | {c: seen[c] for c in ("overhead", "wrist")}


FAULTS: Mapping[str, tuple[Callable[[Seen], Seen], str]] = {
    "cameras swapped": (_exchanged("overhead", "wrist"), "cameras-exchanged"),
    "overhead missing": (_without("overhead"), "camera-missing"),
    "wrist missing": (_without("wrist"), "camera-missing"),
    "overhead black": (_picture("overhead", lambda p: p // 40), "camera-black"),
    "wrist black": (_picture("wrist", np.zeros_like), "camera-black"),
    "wrist covered": (_picture("wrist", lambda p: np.full_like(p, 130)), "camera-uniform"),
    "overhead upside down": (_picture("overhead", lambda p: p[::-1, ::-1]), "camera-view"),
    "wrist upside down": (_picture("wrist", lambda p: p[::-1, ::-1]), "camera-view"),
    "wrist in BGR": (_picture("wrist", lambda p: p[:, :, ::-1]), "camera-view"),
    "radians": (_joints(lambda joint, v: v if "gripper" in joint else float(np.radians(v))), "units"),
    "normalized": (_joints(lambda joint, v: 100 * v / HALF_RANGES[joint]), "units"),
    "pan offset": (_offset("shoulder_pan.pos", 15), "joint-offset"),
    "lift offset": (_offset("shoulder_lift.pos", -15), "joint-offset"),
    "elbow offset": (_offset("elbow_flex.pos", 15), "joint-offset"),
    "wrist offset": (_offset("wrist_flex.pos", -15), "joint-offset"),
    "roll offset": (_offset("wrist_roll.pos", 15), "joint-offset"),
    "motor ids exchanged": (_exchanged("shoulder_lift.pos", "elbow_flex.pos"), "joint-order"),
    "joints in reverse": (_reversed, "joint-order"),
}
"""What the owner got wrong -> how the robot then shows itself, and the rule that stops it."""


@RobotConfig.register_subclass("so101_faulty")
@dataclass(kw_only=True)
class FaultyFollowerConfig(SimulatedFollowerConfig):
    """The simulated arm's settings, and the planted mistake; empty: none."""

    fault: str = ""
    use_degrees: bool = True


class FaultyFollower(SimulatedFollower):
    """The simulated arm with a mistake; it counts its motions."""

    config_class = FaultyFollowerConfig
    name = "so101_faulty"
    motions = 0

    def _changed(self, seen: Seen) -> Seen:
        return FAULTS[self.config.fault][0](seen) if self.config.fault else seen

    @property
    def observation_features(self) -> dict[str, Any]:
        """As the changed observation has them."""
        images = {"overhead": np.zeros((2, 2, 3)), "wrist": np.zeros((2, 2, 3))}
        size = self.config.image_size
        changed = self._changed(dict.fromkeys(SO101_JOINTS, 0.0) | images)
        return {key: (size, size, 3) if key in images else float for key in changed}

    @property
    def action_features(self) -> dict[str, Any]:
        """In the order of the observation."""
        return {key: kind for key, kind in self.observation_features.items() if kind is float}

    def get_observation(self) -> Seen:
        """Return what the owner's robot shows."""
        return self._changed(super().get_observation())

    def send_action(self, action: Seen) -> Seen:
        """Count the motion."""
        FaultyFollower.motions += 1
        return super().send_action(action)
