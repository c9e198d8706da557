import numpy as np
import pytest

from zk0.settings.dataset_settings import SimulatorSettings
from zk0.simulator.arm import SimulatedArm
from zk0.simulator.expert import FAST_RADIANS, GRASP_OFFSET_M, LONGEST_ATTEMPT, InverseKinematics, ScriptedExpert
from zk0.simulator.tasks import TASKS

DETOUR_DEGREES = np.array([15, 12, 12, 12, 15, 15])


def attempt(arm: SimulatedArm, expert: ScriptedExpert, steps: int) -> bool:
    return any(arm.step(expert.action(), render=False).success for _ in range(steps))


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_succeeds_on_at_least_19_of_20_seeds(task: str, settings: SimulatorSettings) -> None:
    with SimulatedArm(task, settings, render=False) as arm:
        expert, done = ScriptedExpert(arm), []
        for seed in range(20):
            arm.reset(seed)
            done.append(attempt(arm, expert, LONGEST_ATTEMPT))
    assert sum(done) >= 19


def test_a_stacked_cube_stays_where_it_is_when_the_arm_leaves(settings: SimulatorSettings) -> None:
    with SimulatedArm("stack-red-blue", settings, render=False) as arm:
        expert, offsets = ScriptedExpert(arm), []
        _, data = arm.physics
        for seed in range(10):
            arm.reset(seed)
            assert attempt(arm, expert, LONGEST_ATTEMPT)
            for _ in range(12):
                arm.step(expert.action(), render=False)
            offsets.append(data.body("cube_a").xpos - data.body("cube_b").xpos)
            tool = data.site("gripperframe").xpos
            assert tool[2] > data.body("cube_a").xpos[2] + 0.03, "the arm has left"
    np.testing.assert_allclose(np.array(offsets)[:, 2], 0.025, atol=0.002)
    assert np.median(np.linalg.norm(np.array(offsets)[:, :2], axis=1)) < 0.005


@pytest.mark.parametrize("task", ["lift-red", "place-yellow-green", "stack-red-blue"])
def test_the_expert_recovers_wherever_the_arm_was_moved(task: str, settings: SimulatorSettings) -> None:
    rng = np.random.default_rng(0)
    with SimulatedArm(task, settings, render=False) as arm:
        expert, done = ScriptedExpert(arm), []
        for seed in range(12):
            state = arm.reset(seed).state
            for _ in range(2):
                for _ in range(int(rng.integers(3, 15))):
                    state = arm.step(expert.action()).observation.state
                away = state + rng.normal(0, 1, 6) * DETOUR_DEGREES - [0, 8, 0, 0, 0, 0]
                arm.step(away)
            done.append(attempt(arm, expert, 2 * LONGEST_ATTEMPT))
    assert sum(done) >= 10


def test_it_opens_the_jaws_again_when_they_closed_on_nothing(settings: SimulatorSettings) -> None:
    with SimulatedArm("lift-red", settings, render=False) as arm:
        expert = ScriptedExpert(arm)
        arm.reset(1)
        closed = arm.step([0, -20, 20, 80, 0, 0]).observation.state
        assert closed[5] < 10
        assert expert.action()[5] > closed[5] + 5
        assert attempt(arm, expert, LONGEST_ATTEMPT)


def test_an_answer_does_not_depend_on_those_before(settings: SimulatorSettings) -> None:
    with SimulatedArm("stack-red-blue", settings, render=False) as arm:
        expert = ScriptedExpert(arm)
        for seed in (0, 1, 2):
            arm.reset(seed)
            attempt(arm, expert, 40)
        arm.reset(3)
        for _ in range(LONGEST_ATTEMPT):
            action = expert.action()
            np.testing.assert_array_equal(action, ScriptedExpert(arm).action())
            if arm.step(action).success:
                break


@pytest.mark.parametrize("task", ["place-red-blue", "stack-red-blue"])
def test_a_chunk_is_what_the_expert_does_and_does_not_move_the_scene(task: str, settings: SimulatorSettings) -> None:
    with SimulatedArm(task, settings, render=False) as arm:
        arm.reset(3)
        _, data = arm.physics
        expert, before = ScriptedExpert(arm), data.qpos.copy()
        chunk = expert.chunk(LONGEST_ATTEMPT)
        np.testing.assert_array_equal(data.qpos, before)
        np.testing.assert_array_equal(expert.chunk(LONGEST_ATTEMPT), chunk)
        done = []
        for action in chunk:
            np.testing.assert_allclose(action, expert.action(), atol=1e-3)
            done.append(arm.step(action).success)
            if done[-1]:
                break
    assert done[-1]
    assert (chunk.dtype, chunk.shape) == (np.float32, (LONGEST_ATTEMPT, 6))
    arm_joints = np.abs(np.diff(chunk[:, :5], axis=0)).max()
    assert arm_joints < 2.1 * np.degrees(FAST_RADIANS)


def test_inverse_kinematics_brings_the_jaws_there_pointing_down(settings: SimulatorSettings) -> None:
    import mujoco
    from so101_nexus import SO101_JOINT_NAMES

    place, yaw, offset = np.array([0.26, 0.04, 0.02]), 0.3, np.array(GRASP_OFFSET_M)
    with SimulatedArm("lift-red", settings, render=False) as arm:
        model, _ = arm.physics
        joints, miss = InverseKinematics(model).solve(place, yaw, offset)
        scratch = mujoco.MjData(model)
        for name, angle in zip(SO101_JOINT_NAMES, joints, strict=False):
            scratch.joint(name).qpos[0] = angle
        mujoco.mj_forward(model, scratch)
        site = scratch.site("gripperframe")
        rotation = site.xmat.reshape(3, 3)
        np.testing.assert_allclose(site.xpos + rotation @ offset, place, atol=1e-3)
        assert miss < 1e-3
        assert np.degrees(np.arccos(-rotation[2, 2])) < 10
        turn = np.degrees(np.arctan2(rotation[1, 0], rotation[0, 0]) - yaw)
        assert abs((turn + 45) % 90 - 45) < 5


def test_inverse_kinematics_says_how_far_it_misses_what_is_out_of_reach(settings: SimulatorSettings) -> None:
    with SimulatedArm("lift-red", settings, render=False) as arm:
        model, _ = arm.physics
        _, miss = InverseKinematics(model).solve(np.array([0.60, 0.0, 0.02]), 0.0, np.zeros(3))
    assert 0.1 < miss < 0.5
