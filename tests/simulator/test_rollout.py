import numpy as np
import pytest

from zk0.errors import SimulatorError
from zk0.session import SimulatorSettings
from zk0.simulator.environment import Observation, SimulatedArm
from zk0.simulator.expert import plan
from zk0.simulator.rollout import rollout


@pytest.mark.parametrize("task", ["lift-red", "place-yellow-green", "stack-red-blue"])
def test_the_experts_actions_in_chunks_succeed(task: str, settings: SimulatorSettings) -> None:
    with SimulatedArm(task, settings, render=False) as arm:
        arm.reset(2)
        planned = plan(arm)
        chunks = iter(np.array_split(planned, range(5, len(planned), 5)))
        asked: list[Observation] = []

        def act(observation: Observation) -> np.ndarray:
            asked.append(observation)
            return next(chunks)

        found = rollout(arm, 2, act, max_steps=60)
    assert found.success
    assert (found.task, found.seed, found.fps) == (task, 2, 10)
    np.testing.assert_array_equal(found.actions, planned[: found.steps])
    assert len(found.observations) == found.steps + 1
    assert [step for step, _ in found.chunks] == list(range(0, found.steps, 5))
    assert all(found.observations[step] is seen for (step, _), seen in zip(found.chunks, asked, strict=True))
    assert found.duration_seconds == pytest.approx(found.steps / 10)


@pytest.mark.parametrize("task", ["lift-red", "place-red-blue", "stack-red-blue"])
def test_doing_nothing_fails_at_the_limit(task: str, settings: SimulatorSettings) -> None:
    with SimulatedArm(task, settings, render=False) as arm:
        found = rollout(arm, 0, lambda seen: np.repeat(seen.state[None], 4, axis=0), max_steps=10)
    assert not found.success
    assert found.steps == 10
    assert [(step, len(chunk)) for step, chunk in found.chunks] == [(0, 4), (4, 4), (8, 4)]


@pytest.mark.usefixtures("images")
def test_a_trajectory_keeps_the_images(settings: SimulatorSettings) -> None:
    with SimulatedArm("lift-red", settings, render=True) as arm:
        found = rollout(arm, 0, lambda seen: seen.state[None] + np.float32(3), max_steps=3)
    assert [sorted(seen.images) for seen in found.observations] == [["overhead", "wrist"]] * 4
    # Every observation owns its picture: the arm moved, so no two are the same.
    assert (found.observations[0].images["wrist"] != found.observations[-1].images["wrist"]).any()


def test_bad_actions_are_refused_with_their_place(settings: SimulatorSettings) -> None:
    with SimulatedArm("lift-red", settings, render=False) as arm:
        with pytest.raises(
            SimulatorError, match=r"lift-red, seed 4, chunk before step 0: row 0, gripper.pos: found inf"
        ):
            rollout(arm, 4, lambda _: np.array([[0, 0, 0, 0, 0, np.inf]]), max_steps=5)
        with pytest.raises(SimulatorError, match=r"found shape \(6,\), expected \(n, 6\)"):
            rollout(arm, 4, lambda seen: seen.state, max_steps=5)
        with pytest.raises(SimulatorError, match="max_steps is 0"):
            rollout(arm, 4, lambda seen: seen.state[None], max_steps=0)
        with pytest.raises(SimulatorError, match="an action: found shape"):
            arm.step(np.zeros(5))
