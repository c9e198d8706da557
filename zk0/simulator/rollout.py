"""A policy in closed loop with simulated arms, several of them side by side."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.errors import SimulatorError
from zk0.simulator.environment import Observation, SimulatedArm, check_actions
from zk0.simulator.task import FPS

Act = Callable[[Sequence[int], Sequence[Observation]], Sequence[NDArray[Any]]]
"""Seeds of some attempts and what each of them sees in; for each a chunk of joint targets (n, 6) in LeRobot's units."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One attempt from its first moment to success or to the limit of steps."""

    task: str
    seed: int
    observations: tuple[Observation, ...]
    """steps + 1 of them: the last one is what the last action led to. Filmed attempts have images in each, others
    where the policy looked."""
    actions: NDArray[np.float32]
    """(steps, 6) joint targets that were carried out, in LeRobot's units."""
    chunks: tuple[tuple[int, NDArray[np.float32]], ...]
    """(step, chunk (n, 6)): what `act` answered before that step, carried out or not."""
    success: bool
    filmed: bool = False
    fps: int = FPS

    @property
    def steps(self) -> int:
        """Actions that were carried out."""
        return len(self.actions)

    @property
    def duration_seconds(self) -> float:
        """Simulated time."""
        return self.steps / self.fps


def rollouts(
    arms: Sequence[SimulatedArm], seeds: Sequence[int], act: Act, max_steps: int, filmed: Collection[int] = ()
) -> list[Trajectory]:
    """One attempt a seed, as many at a time as there are arms; `act` is asked for all of them at once.

    Each chunk is carried out to its end before `act` is asked again. Only seeds in `filmed` look in every step.

    Raises:
        SimulatorError: `max_steps` is below 1, there is no arm, or a chunk has another shape or is not finite.
    """
    if max_steps < 1 or not arms:
        raise SimulatorError(f"rollouts: max_steps {max_steps} with {len(arms)} arms, expected at least 1 of each")
    waiting, free = list(seeds), list(arms)
    running: list[_Attempt] = []
    done: dict[int, Trajectory] = {}
    while waiting or running:
        while waiting and free:
            running.append(_Attempt(free.pop(), waiting[0], waiting.pop(0) in filmed, max_steps))
        chunks = act([a.seed for a in running], [a.observations[-1] for a in running])
        for attempt, chunk in zip(running, chunks, strict=True):
            attempt.carry_out(chunk)
        for attempt in [a for a in running if a.is_over]:
            done[attempt.seed] = attempt.trajectory()
            running.remove(attempt)
            free.append(attempt.arm)
    return [done[seed] for seed in seeds]


@dataclass(eq=False)
class _Attempt:
    """One attempt while it runs."""

    arm: SimulatedArm
    seed: int
    filmed: bool
    max_steps: int
    actions: list[NDArray[np.float32]] = field(default_factory=list)
    chunks: list[tuple[int, NDArray[np.float32]]] = field(default_factory=list)
    success: bool = False

    def __post_init__(self) -> None:
        self.observations = [self.arm.reset(self.seed)]

    @property
    def is_over(self) -> bool:
        return self.success or len(self.actions) >= self.max_steps

    def carry_out(self, chunk: NDArray[Any]) -> None:
        """All actions of a chunk, or as many as success and the limit leave."""
        where = f"rollout of {self.arm.task.name}, seed {self.seed}, chunk before step {len(self.actions)}"
        rows = check_actions(np.asarray(chunk), where)
        self.chunks.append((len(self.actions), rows))
        wanted = rows[: self.max_steps - len(self.actions)]
        for index, action in enumerate(wanted):
            step = self.arm.step(action, look=self.filmed or index == len(wanted) - 1)
            self.actions.append(action)
            self.observations.append(step.observation)
            if step.success:
                self.success = True
                return

    def trajectory(self) -> Trajectory:
        """What it left behind."""
        return Trajectory(
            task=self.arm.task.name,
            seed=self.seed,
            observations=tuple(self.observations),
            actions=np.stack(self.actions),
            chunks=tuple(self.chunks),
            success=self.success,
            filmed=self.filmed,
        )
