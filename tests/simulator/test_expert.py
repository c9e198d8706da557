import numpy as np
import pytest

from zk0.settings.dataset_settings import SimulatorSettings
from zk0.simulator.arm import SimulatedArm
from zk0.simulator.expert import PINCH_OFFSET_M, InverseKinematics, plan_trajectory
from zk0.simulator.tasks import TASKS


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_succeeds_on_at_least_19_of_20_seeds(task: str, settings: SimulatorSettings) -> None:
    with SimulatedArm(task, settings, render=False) as arm:
        done = []
        for seed in range(20):
            arm.reset(seed)
            done.append(any(arm.step(action).success for action in plan_trajectory(arm)))
    assert sum(done) >= 19


def test_a_cube_is_released_over_the_middle_of_the_other(settings: SimulatorSettings) -> None:
    with SimulatedArm("stack-red-blue", settings, render=False) as arm:
        _, data = arm.physics
        for seed in range(10):
            arm.reset(seed)
            assert any(arm.step(action).success for action in plan_trajectory(arm))
            apart = data.body("cube_a").xpos[:2] - data.body("cube_b").xpos[:2]
            assert np.linalg.norm(apart) < 0.006


def test_planning_does_not_move_the_scene(settings: SimulatorSettings) -> None:
    with SimulatedArm("stack-red-blue", settings, render=False) as arm:
        arm.reset(3)
        _, data = arm.physics
        before = data.qpos.copy()
        actions = plan_trajectory(arm)
        np.testing.assert_array_equal(data.qpos, before)
        np.testing.assert_array_equal(plan_trajectory(arm), actions)
    assert actions.dtype == np.float32
    assert actions.shape[1] == 6


def test_inverse_kinematics_brings_the_jaws_there_pointing_down(settings: SimulatorSettings) -> None:
    import mujoco
    from so101_nexus import SO101_JOINT_NAMES

    place, yaw = np.array([0.26, 0.04, 0.02]), 0.3
    with SimulatedArm("lift-red", settings, render=False) as arm:
        model, _ = arm.physics
        joints = InverseKinematics(model).solve(place, yaw, gripper=0.5)
        scratch = mujoco.MjData(model)
        for name, angle in zip(SO101_JOINT_NAMES, joints, strict=True):
            scratch.joint(name).qpos[0] = angle
        mujoco.mj_forward(model, scratch)
        site = scratch.site("gripperframe")
        rotation = site.xmat.reshape(3, 3)
        np.testing.assert_allclose(site.xpos + rotation @ PINCH_OFFSET_M, place, atol=1e-3)
        assert np.degrees(np.arccos(-rotation[2, 2])) < 5
        turn = np.degrees(np.arctan2(rotation[1, 0], rotation[0, 0]) - yaw)
        assert abs((turn + 45) % 90 - 45) < 5
