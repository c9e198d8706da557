"""A policy in closed loop with the simulated arm."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.errors import SimulatorError
from zk0.simulator.environment import Observation, SimulatedArm, check_actions
from zk0.simulator.task import FPS

Act = Callable[[Observation], NDArray[Any]]
"""An observation in, a chunk of joint targets (n, 6) in LeRobot's units out."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One attempt from its first moment to success or to the limit of steps."""

    task: str
    seed: int
    observations: tuple[Observation, ...]
    """steps + 1 of them: the last one is what the last action led to."""
    actions: NDArray[np.float32]
    """(steps, 6) joint targets that were carried out, in LeRobot's units."""
    chunks: tuple[tuple[int, NDArray[np.float32]], ...]
    """(step, chunk (n, 6)): what `act` answered before that step, carried out or not."""
    success: bool
    fps: int = FPS

    @property
    def steps(self) -> int:
        """Actions that were carried out."""
        return len(self.actions)

    @property
    def duration_seconds(self) -> float:
        """Simulated time."""
        return self.steps / self.fps


def rollout(arm: SimulatedArm, seed: int, act: Act, max_steps: int) -> Trajectory:
    """Let `act` move the arm; each chunk is carried out to its end before `act` is asked again.

    Raises:
        SimulatorError: `max_steps` is below 1, or a chunk has another shape or is not finite.
    """
    if max_steps < 1:
        raise SimulatorError(f"rollout of {arm.task.name}: max_steps is {max_steps}, expected at least 1")
    observations = [arm.reset(seed)]
    actions: list[NDArray[np.float32]] = []
    chunks: list[tuple[int, NDArray[np.float32]]] = []
    success = False
    while not success and len(actions) < max_steps:
        where = f"rollout of {arm.task.name}, seed {seed}, chunk before step {len(actions)}"
        chunk = check_actions(np.asarray(act(observations[-1])), where)
        chunks.append((len(actions), chunk))
        for action in chunk[: max_steps - len(actions)]:
            step = arm.step(action)
            actions.append(action)
            observations.append(step.observation)
            if step.success:
                success = True
                break
    return Trajectory(
        task=arm.task.name,
        seed=seed,
        observations=tuple(observations),
        actions=np.stack(actions),
        chunks=tuple(chunks),
        success=success,
    )
