"""The scripted expert while it is disturbed: it corrects itself, as a careful person does.

Noise is added to the actions that are executed, and in most episodes the arm is moved away once or twice, after which
the expert plans again. The action that counts is the one that the undisturbed expert takes from there, so a policy that
imitates it learns to recover (DART, Laskey et al. 2017, arXiv 1703.09327).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from zk0.simulator.arm import Observation, SimulatedArm
from zk0.simulator.expert import plan_trajectory

DETOURS = 0.7
"""Share of episodes in which the arm is moved away once or twice."""
_MOST_STEPS_BEFORE_DETOUR = 12
_STEPS_WITH_SAME_NOISE = 3
_DETOUR_DEGREES = np.array([15, 12, 12, 12, 15, 10])
"""Standard deviation of a detour by joint; the gripper's is in percent."""
_UPWARD_DEGREES = np.array([0, 8, 0, 0, 0, 0])
"""A detour leads upward rather than into the table."""

OnStep = Callable[[Observation, NDArray[np.float32], bool], None]


def attempt_with_disturbances(
    arm: SimulatedArm, seed: int, rng: np.random.Generator, on_step: OnStep, *, render: bool
) -> bool:
    """Let the expert solve the episode of this seed against disturbances; return whether it succeeded.

    Args:
        arm: an open arm.
        seed: of the episode.
        rng: draws the disturbances.
        on_step: called before each step of the expert with the observation, its remaining plan (n, 6), and whether no
            detour follows, so that this plan is carried out to the end.
        render: whether observations have images from the last detour on; those before never have.
    """
    detours = int(rng.integers(1, 3)) if rng.random() < DETOURS else 0
    observation = arm.reset(seed, render=render and detours == 0)
    for to_come in reversed(range(detours + 1)):
        plan = plan_trajectory(arm)
        noise: NDArray[np.float64] = np.zeros(6)
        steps = int(rng.integers(1, _MOST_STEPS_BEFORE_DETOUR + 1)) if to_come else len(plan)
        for step in range(steps):
            if step % _STEPS_WITH_SAME_NOISE == 0:
                noise = rng.normal(0, noise_degrees(step), 6) * [1, 1, 1, 1, 1, 0]
            on_step(observation, plan[step:], to_come == 0)
            done = arm.step(plan[step] + noise, render=render and to_come == 0)
            observation = done.observation
            if done.success:
                return True
        if to_come:
            observation = _move_away(arm, observation, rng, render=render and to_come == 1)
    return False


def noise_degrees(step: int) -> float:
    """Return the standard deviation of the noise at a step: large on the way, small where the jaws close or open."""
    return 3.5 if step < 9 else 0.7 if step < 19 else 2.0 if step < 33 else 0.7


def _move_away(arm: SimulatedArm, observation: Observation, rng: np.random.Generator, *, render: bool) -> Observation:
    away = observation.state + rng.normal(0, 1, 6) * _DETOUR_DEGREES - _UPWARD_DEGREES
    away[5] = rng.choice([observation.state[5], rng.uniform(0, 40)])
    for remaining in reversed(range(int(rng.integers(2, 5)))):
        observation = arm.step(away, render=render and remaining == 0).observation
    return observation
