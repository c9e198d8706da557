"""Demonstrations by the scripted expert: recorded, replayed, and named by everything that asked for them."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.errors import SimulatorError
from zk0.session import SimulatorSettings
from zk0.simulator.environment import SimulatedArm
from zk0.simulator.expert import plan
from zk0.simulator.task import FPS, find_task

RECORDER_VERSION = 1
"""Goes up whenever the same request would be recorded differently."""
EXPECTED_SUCCESS = 0.95
"""Below this share of successful seeds the expert is broken, or the settings ask for too much."""


@dataclass(frozen=True, eq=False)
class DemonstrationFrame:
    """What was seen, and what the expert did then."""

    state: NDArray[np.float32]
    """(6,) in LeRobot's units, before the action."""
    action: NDArray[np.float32]
    """(6,) joint target in LeRobot's units."""
    images: Mapping[str, NDArray[np.uint8]]
    """Camera -> (height, width, 3) RGB."""
    task: str


@dataclass(frozen=True, eq=False)
class Demonstration:
    """One successful episode; it ends with the frame whose action succeeded."""

    seed: int
    frames: Sequence[DemonstrationFrame]


def demonstrate(task: str, settings: SimulatorSettings, *, render: bool = True) -> Iterator[Demonstration]:
    """Exactly `settings.episodes` successes, seeds from `settings.first_seed` upward; failed seeds are passed over.

    Raises:
        SimulatorError: the task does not exist, or less than 95 % of the seeds succeeded (one may always fail).
    """
    allowed = max(1, floor(settings.episodes * (1 - EXPECTED_SUCCESS) / EXPECTED_SUCCESS))
    found, seed = 0, settings.first_seed
    failed: list[int] = []
    with SimulatedArm(task, settings, render=render) as arm:
        while found < settings.episodes:
            frames = _attempt(arm, seed)
            if frames is not None:
                found += 1
                yield Demonstration(seed=seed, frames=frames)
            else:
                failed.append(seed)
            if len(failed) > allowed:
                raise SimulatorError(_too_many(task, found, failed))
            seed += 1


def replay(arm: SimulatedArm, seed: int, actions: NDArray[Any]) -> bool:
    """Whether these actions, (n, 6) in LeRobot's units, carried out blindly from this seed, reach success."""
    arm.reset(seed)
    return any(arm.step(action).success for action in actions)


def demonstration_key(task: str, settings: SimulatorSettings) -> str:
    """SHA-256 (hex) of all that decides what is recorded: equal keys, equal demonstrations on one machine.

    Raises:
        SimulatorError: the task does not exist.
    """
    asked = {
        "task": find_task(task).model_dump(),
        "settings": settings.model_dump(),
        "fps": FPS,
        "recorder": RECORDER_VERSION,
        "so101-nexus": version("so101-nexus"),
        "mujoco": version("mujoco"),
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _attempt(arm: SimulatedArm, seed: int) -> list[DemonstrationFrame] | None:
    """The frames of one episode up to success; None where the expert failed."""
    seen = arm.reset(seed)
    frames = []
    for action in plan(arm):
        frames.append(DemonstrationFrame(state=seen.state, action=action, images=seen.images, task=seen.task))
        step = arm.step(action)
        if step.success:
            return frames
        seen = step.observation
    return None


def _too_many(task: str, found: int, failed: Sequence[int]) -> str:
    tried = found + len(failed)
    return (
        f"simulated task {task}: the expert succeeded on {found} of {tried} seeds (failed on "
        f"{', '.join(map(str, failed))}), expected at least {EXPECTED_SUCCESS:.0%}; "
        "narrow simulator.spawn_radius_m or simulator.spawn_half_angle_degrees"
    )
