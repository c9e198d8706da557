import threading
from collections.abc import Sequence

import numpy as np
import pytest

from zk0.errors import SettingsError, SimulatorError
from zk0.settings.dataset_settings import SimulatorSettings
from zk0.simulator.arm import Observation, SimulatedArm
from zk0.simulator.expert import plan_trajectory
from zk0.simulator.rollout import Trajectory, open_arms, simulate_attempts


class Expert:
    """Returns planned actions in chunks of five, whatever the observations; records its calls."""

    def __init__(self, planned: dict[int, np.ndarray]) -> None:
        self.left = {seed: iter(np.array_split(p, range(5, len(p), 5))) for seed, p in planned.items()}
        self.calls: list[tuple[int, ...]] = []
        self.observations: dict[int, list[Observation]] = {seed: [] for seed in planned}

    def __call__(self, seeds: Sequence[int], observations: Sequence[Sequence[Observation]]) -> list[np.ndarray]:
        self.calls.append(tuple(seeds))
        for seed, (observation,) in zip(seeds, observations, strict=True):
            self.observations[seed].append(observation)
        return [next(self.left[seed]) for seed in seeds]


def still(seeds: Sequence[int], observations: Sequence[Sequence[Observation]]) -> list[np.ndarray]:
    return [np.repeat(observation.state[None], 4, axis=0) for (observation,) in observations]


def planned(arm: SimulatedArm, seeds: Sequence[int]) -> dict[int, np.ndarray]:
    found = {}
    for seed in seeds:
        arm.reset(seed)
        found[seed] = plan_trajectory(arm)
    return found


@pytest.mark.parametrize("task", ["lift-red", "place-yellow-green", "stack-red-blue"])
def test_the_experts_actions_in_chunks_succeed(task: str, settings: SimulatorSettings) -> None:
    with open_arms([SimulatedArm(task, settings, render=False)]) as arms:
        expert = Expert(actions := planned(arms[0].arm, [2]))
        (found,) = simulate_attempts(arms, [2], expert, max_steps=60)
    assert found.success
    assert (found.task, found.seed, found.fps) == (task, 2, 10)
    np.testing.assert_array_equal(found.actions, actions[2][: found.steps])
    assert len(found.observations) == found.steps + 1
    assert [step for step, _ in found.chunks] == list(range(0, found.steps, 5))
    assert all(
        found.observations[at] is observation
        for (at, _), observation in zip(found.chunks, expert.observations[2], strict=True)
    )
    assert found.duration_seconds == pytest.approx(found.steps / 10)


def same(one: Trajectory, other: Trajectory) -> bool:
    states = [np.stack([o.state for o in t.observations]) for t in (one, other)]
    return one.success == other.success and np.array_equal(*states) and np.array_equal(one.actions, other.actions)


def test_parallel_attempts_equal_sequential_ones(settings: SimulatorSettings) -> None:
    """Three arms share seven attempts; each attempt equals the one that runs alone."""
    seeds = list(range(7))
    with open_arms(SimulatedArm("lift-red", settings, render=False) for _ in range(3)) as arms:
        actions = planned(arms[0].arm, seeds)
        actions[5][:, 0] += 40  # one misses the cube, and is over last
        together = Expert(actions)
        found = simulate_attempts(arms, seeds, together, max_steps=26)
        alone = [
            simulate_attempts(arms[1:2], [seed], Expert({seed: actions[seed]}), max_steps=26)[0]
            for seed in seeds
            if seed != 5
        ]
    assert [t.seed for t in found] == seeds
    assert [t.success for t in found] == [seed != 5 for seed in seeds]
    assert together.calls[0] == (0, 1, 2)
    assert max(map(len, together.calls)) == 3
    assert all(same(a, b) for a, b in zip([t for t in found if t.seed != 5], alone, strict=True))


def test_arms_move_at_the_same_time_and_their_images_are_those_of_an_arm_alone(settings: SimulatorSettings) -> None:
    def turn(seeds: Sequence[int], observations: Sequence[Sequence[Observation]]) -> list[np.ndarray]:
        return [np.repeat(observation.state[None] + np.float32(3), 2, axis=0) for (observation,) in observations]

    with open_arms(SimulatedArm("lift-red", settings, render=True) for _ in range(2)) as arms:
        both = threading.Barrier(len(arms), timeout=60)  # passed only by calls that run at the same time
        assert sorted(f.result() for f in [arm.start(both.wait) for arm in arms]) == [0, 1]
        together = simulate_attempts(arms, [0, 1], turn, max_steps=4, rendered_seeds=[0, 1])
        alone = [simulate_attempts(arms[:1], [seed], turn, max_steps=4, rendered_seeds=[seed])[0] for seed in (0, 1)]
    for one, other in zip(together, alone, strict=True):
        assert same(one, other)
        for observation, again in zip(one.observations, other.observations, strict=True):
            for camera, image in observation.images.items():
                np.testing.assert_array_equal(image, again.images[camera])


def test_arms_are_closed_where_another_cannot_be_opened(settings: SimulatorSettings) -> None:
    impossible = SimulatorSettings(spawn_radius_m=(0.2, 0.1))
    arms = [SimulatedArm("lift-red", one, render=False) for one in (settings, impossible)]
    with pytest.raises(SettingsError, match="simulator:"), open_arms(arms):
        raise AssertionError("the block is not entered")
    with pytest.raises(SimulatorError, match="not open"):
        arms[0].reset(0)


@pytest.mark.parametrize("task", ["lift-red", "place-red-blue", "stack-red-blue"])
def test_doing_nothing_fails_at_the_limit(task: str, settings: SimulatorSettings) -> None:
    with open_arms([SimulatedArm(task, settings, render=False)]) as arms:
        (found,) = simulate_attempts(arms, [0], still, max_steps=10)
    assert not found.success
    assert found.steps == 10
    assert [(step, len(chunk)) for step, chunk in found.chunks] == [(0, 4), (4, 4), (8, 4)]


@pytest.mark.usefixtures("images")
def test_a_policy_that_sees_two_steps_gets_both_with_images(settings: SimulatorSettings) -> None:
    seen: list[list[Observation]] = []

    def turn(seeds: Sequence[int], observations: Sequence[Sequence[Observation]]) -> list[np.ndarray]:
        seen.append([*observations[0]])
        return [np.repeat(observations[0][-1].state[None] + np.float32(3), 3, axis=0)]

    with open_arms([SimulatedArm("lift-red", settings, render=True)]) as arms:
        (found,) = simulate_attempts(arms, [0], turn, max_steps=6, observed_steps=2)
    assert [[found.observations.index(one) for one in pair] for pair in seen] == [[0, 0], [2, 3]]
    assert all(sorted(one.images) == ["overhead", "wrist"] for pair in seen for one in pair)
    assert [len(one.images) for one in found.observations] == [2, 0, 2, 2, 0, 2, 2]


def test_a_rendered_attempt_differs_only_by_images_in_every_step(settings: SimulatorSettings) -> None:
    def turn(seeds: Sequence[int], observations: Sequence[Sequence[Observation]]) -> list[np.ndarray]:
        assert all(sorted(observation.images) == ["overhead", "wrist"] for (observation,) in observations)
        return [np.repeat(observation.state[None] + np.float32(3), 2, axis=0) for (observation,) in observations]

    with open_arms([SimulatedArm("lift-red", settings, render=True)]) as arms:
        (rendered,) = simulate_attempts(arms, [0], turn, max_steps=6, rendered_seeds=[0])
        (quick,) = simulate_attempts(arms, [0], turn, max_steps=6)
    assert same(rendered, quick)
    assert all(sorted(observation.images) == ["overhead", "wrist"] for observation in rendered.observations)
    assert [bool(observation.images) for observation in quick.observations] == [
        True,
        False,
        True,
        False,
        True,
        False,
        True,
    ]
    for one, other in zip(rendered.observations[::2], quick.observations[::2], strict=True):
        np.testing.assert_array_equal(one.images["wrist"], other.images["wrist"])
    # Every observation has an image of its own: the arm moved, so no two are the same.
    assert (rendered.observations[0].images["wrist"] != rendered.observations[-1].images["wrist"]).any()


def test_invalid_actions_are_refused_with_their_place(settings: SimulatorSettings) -> None:
    with open_arms([SimulatedArm("lift-red", settings, render=False)]) as arms:
        with pytest.raises(
            SimulatorError, match=r"lift-red, seed 4, chunk before step 0: row 0, gripper.pos: found inf"
        ):
            simulate_attempts(arms, [4], lambda *_: [np.array([[0, 0, 0, 0, 0, np.inf]])], max_steps=5)
        with pytest.raises(SimulatorError, match=r"found shape \(6,\), expected \(n, 6\)"):
            simulate_attempts(arms, [4], lambda _, observations: [observations[0][0].state], max_steps=5)
        with pytest.raises(SimulatorError, match="max_steps 0 with 1 arms"):
            simulate_attempts(arms, [4], still, max_steps=0)
        with pytest.raises(SimulatorError, match="max_steps 5 with 0 arms"):
            simulate_attempts([], [4], still, max_steps=5)
        with pytest.raises(SimulatorError, match="an action: found shape"):
            arms[0].arm.step(np.zeros(5))
