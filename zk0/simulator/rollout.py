"""Rollouts of a policy in closed loop with simulated arms, several in parallel."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.errors import SimulatorError
from zk0.simulator.arm import Observation, SimulatedArm, check_actions
from zk0.simulator.tasks import FPS

ActFunction = Callable[[Sequence[int], Sequence[Sequence[Observation]]], Sequence[NDArray[Any]]]
"""(seeds of some attempts, the last observations of each, the newest one last) -> an action chunk (n, 6) in LeRobot's
units for each."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One attempt, from its reset to success or to the limit of steps."""

    task: str
    seed: int
    observations: tuple[Observation, ...]
    """steps + 1: one before each action and one after the last. Rendered attempts have images in each, others only
    where the policy was called."""
    actions: NDArray[np.float32]
    """(steps, 6) executed joint targets, in LeRobot's units."""
    chunks: tuple[tuple[int, NDArray[np.float32]], ...]
    """(step, chunk (n, 6)): what `act` returned before that step, executed or not."""
    success: bool
    fps: int = FPS

    @property
    def steps(self) -> int:
        """Executed actions."""
        return len(self.actions)

    @property
    def duration_seconds(self) -> float:
        """Simulated time."""
        return self.steps / self.fps


@dataclass(frozen=True, eq=False)
class ArmThread:
    """An open arm, and the only thread that moves it: an OpenGL context belongs to the thread that made it."""

    arm: SimulatedArm
    executor: ThreadPoolExecutor

    def start[**P, T](self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Call a function in the arm's thread, after those that were started before."""
        return self.executor.submit(function, *args, **kwargs)


@contextmanager
def open_arms(arms: Iterable[SimulatedArm]) -> Iterator[list[ArmThread]]:
    """Open arms, each in a thread of its own, and close them at the end of the block.

    They move at the same time, on as many cores as there are: MuJoCo does not hold Python's global interpreter lock
    while it simulates and renders.

    Raises:
        SimulatorError: no image can be rendered although an arm has cameras.
        SettingsError: the spawn area is impossible.
    """
    with ExitStack() as stack:
        opened = []
        for arm in arms:
            thread = ArmThread(arm, stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="arm")))
            stack.callback(_close, thread)
            thread.start(arm.__enter__).result()
            opened.append(thread)
        yield opened


def _close(thread: ArmThread) -> None:
    thread.start(thread.arm.__exit__, None, None, None).result()


def simulate_attempts(
    arms: Sequence[ArmThread],
    seeds: Sequence[int],
    act: ActFunction,
    max_steps: int,
    rendered_seeds: Collection[int] = (),
    observed_steps: int = 1,
) -> list[Trajectory]:
    """Run one attempt per seed, as many in parallel as there are arms; `act` is called once for all of them.

    Each chunk is executed to its end before `act` is called again.

    Args:
        arms: of one task.
        seeds: one per attempt.
        act: the policy.
        max_steps: limit of an attempt.
        rendered_seeds: attempts whose every step is rendered, for a video or a dataset; the others are rendered only
            where `act` is called.
        observed_steps: N: `act` gets the last N observations; before the Nth step, the first one several times.

    Returns:
        A trajectory for each seed, in their order.

    Raises:
        SimulatorError: `max_steps` is below 1, there is no arm, or a chunk has another shape or is not finite.
    """
    if max_steps < 1 or not arms:
        raise SimulatorError(f"rollouts: max_steps {max_steps} with {len(arms)} arms, expected at least 1 of each")
    waiting, free = list(seeds), list(arms)
    running: list[_Attempt] = []
    done: dict[int, Trajectory] = {}
    while waiting or running:
        begun = []
        while waiting and free:
            thread, seed = free.pop(), waiting.pop(0)
            begun.append(thread.start(_Attempt, thread, seed, seed in rendered_seeds, max_steps, observed_steps))
        running += [future.result() for future in begun]
        chunks = act([a.seed for a in running], [a.last_observations() for a in running])
        moves = [a.thread.start(a.execute, chunk) for a, chunk in zip(running, chunks, strict=True)]
        for move in moves:
            move.result()
        for attempt in [a for a in running if a.is_over]:
            done[attempt.seed] = attempt.trajectory()
            running.remove(attempt)
            free.append(attempt.thread)
    return [done[seed] for seed in seeds]


@dataclass(eq=False)
class _Attempt:
    """One attempt while it runs; made and moved in its arm's thread."""

    thread: ArmThread
    seed: int
    rendered: bool
    max_steps: int
    observed_steps: int
    actions: list[NDArray[np.float32]] = field(default_factory=list)
    chunks: list[tuple[int, NDArray[np.float32]]] = field(default_factory=list)
    success: bool = False

    def __post_init__(self) -> None:
        self.observations = [self.arm.reset(self.seed)]

    @property
    def arm(self) -> SimulatedArm:
        return self.thread.arm

    @property
    def is_over(self) -> bool:
        return self.success or len(self.actions) >= self.max_steps

    def last_observations(self) -> list[Observation]:
        """What the policy sees of this attempt."""
        seen = self.observations[-self.observed_steps :]
        return [self.observations[0]] * (self.observed_steps - len(seen)) + seen

    def execute(self, chunk: NDArray[Any]) -> None:
        """Execute a chunk, until success or the limit of steps."""
        where = f"rollout of {self.arm.task.name}, seed {self.seed}, chunk before step {len(self.actions)}"
        rows = check_actions(np.asarray(chunk), where)
        self.chunks.append((len(self.actions), rows))
        allowed = rows[: self.max_steps - len(self.actions)]
        for index, action in enumerate(allowed):
            step = self.arm.step(action, render=self.rendered or index >= len(allowed) - self.observed_steps)
            self.actions.append(action)
            self.observations.append(step.observation)
            if step.success:
                self.success = True
                return

    def trajectory(self) -> Trajectory:
        """Return the finished attempt."""
        return Trajectory(
            task=self.arm.task.name,
            seed=self.seed,
            observations=tuple(self.observations),
            actions=np.stack(self.actions),
            chunks=tuple(self.chunks),
            success=self.success,
        )
