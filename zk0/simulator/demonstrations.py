"""Demonstrations of a task by the scripted expert, and the key that identifies a set of them."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from zk0.data.dataset_writer import RecordedFrame
from zk0.errors import SimulatorError
from zk0.settings.dataset_settings import SimulatorSettings
from zk0.simulator.arm import Observation, SimulatedArm
from zk0.simulator.disturbances import attempt_with_disturbances
from zk0.simulator.expert import plan_trajectory
from zk0.simulator.tasks import FPS, find_task

RECORDER_VERSION = 6
"""Increases whenever the same request would be recorded differently."""
EXPECTED_SUCCESS, EXPECTED_SUCCESS_DISTURBED = 0.95, 0.7
"""With a smaller share of successful seeds, the expert is broken or the settings are too hard."""
_ALLOWED_FAILURES, _ALLOWED_FAILURES_DISTURBED = 1, 4
"""Even with few episodes this many seeds may fail."""


@dataclass(frozen=True, eq=False)
class Demonstration:
    """One successful episode; it ends with the frame whose action succeeded."""

    seed: int
    frames: Sequence[RecordedFrame]
    """State and images of each frame are those before its action; with disturbances, the action is the expert's own."""


def demonstrate(task: str, settings: SimulatorSettings, *, render: bool = True) -> Iterator[Demonstration]:
    """Yield exactly `settings.episodes` successful episodes, with seeds from `settings.first_seed` upward.

    Seeds on which the expert fails are skipped.

    Raises:
        SimulatorError: the task does not exist, or fewer seeds succeeded than an expert that works achieves.
    """
    if settings.disturbances:
        attempt, expected, least = _disturbed_attempt, EXPECTED_SUCCESS_DISTURBED, _ALLOWED_FAILURES_DISTURBED
    else:
        attempt, expected, least = _attempt, EXPECTED_SUCCESS, _ALLOWED_FAILURES
    allowed = max(least, int(settings.episodes * (1 - expected) / expected))
    found, seed = 0, settings.first_seed
    failed: list[int] = []
    with SimulatedArm(task, settings, render=render) as arm:
        while found < settings.episodes:
            if frames := attempt(arm, seed):
                found += 1
                yield Demonstration(seed=seed, frames=frames)
            else:
                failed.append(seed)
            if len(failed) > allowed:
                raise SimulatorError(_too_many_failures(task, found, failed, expected))
            seed += 1


def demonstration_key(task: str, settings: SimulatorSettings) -> str:
    """Return the SHA-256 (hex) of everything that decides what is recorded.

    Equal keys mean equal demonstrations on one machine. The names of the fields below and of `SimulatedTask` enter the
    digest: they must not change, or every demonstration is recorded again.

    Raises:
        SimulatorError: the task does not exist.
    """
    content = {
        "task": find_task(task).model_dump(),
        "settings": settings.model_dump(),
        "fps": FPS,
        "recorder": RECORDER_VERSION,
        "so101-nexus": version("so101-nexus"),
        "mujoco": version("mujoco"),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _attempt(arm: SimulatedArm, seed: int) -> list[RecordedFrame]:
    """Return the frames of one episode up to success; none if the expert failed."""
    observation = arm.reset(seed)
    frames = []
    for action in plan_trajectory(arm):
        frames.append(RecordedFrame(observation.state, action, observation.images, observation.task))
        result = arm.step(action)
        if result.success:
            return frames
        observation = result.observation
    return []


def _disturbed_attempt(arm: SimulatedArm, seed: int) -> list[RecordedFrame]:
    """Return the frames of one disturbed episode after its last detour, up to success; none if the expert failed."""
    frames: list[RecordedFrame] = []

    def keep(observation: Observation, plan: NDArray[np.float32], to_the_end: bool) -> None:
        if to_the_end:
            frames.append(RecordedFrame(observation.state, plan[0], observation.images, observation.task))

    succeeded = attempt_with_disturbances(arm, seed, np.random.default_rng(seed), keep, render=arm.render)
    return frames if succeeded else []


def _too_many_failures(task: str, found: int, failed: Sequence[int], expected: float) -> str:
    tried = found + len(failed)
    return (
        f"simulated task {task}: the expert succeeded on {found} of {tried} seeds (failed on "
        f"{', '.join(map(str, failed))}), expected at least {expected:.0%}; "
        "narrow simulator.spawn_radius_m or simulator.spawn_half_angle_degrees"
    )
