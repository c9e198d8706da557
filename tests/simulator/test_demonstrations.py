import numpy as np
import pytest

from zk0.errors import SimulatorError
from zk0.settings.dataset_settings import SimulatorSettings
from zk0.simulator import demonstrations as module
from zk0.simulator.arm import SimulatedArm
from zk0.simulator.demonstrations import Demonstration, demonstrate, demonstration_key
from zk0.simulator.expert import plan_trajectory

WIDE = SimulatorSettings(spawn_radius_m=(0.09, 0.22))
OUT_OF_REACH = SimulatorSettings(spawn_radius_m=(0.25, 0.30))


def replay(arm: SimulatedArm, seed: int, actions: np.ndarray) -> bool:
    """Whether these actions, executed from the reset of this seed, succeed."""
    arm.reset(seed)
    return any(arm.step(action).success for action in actions)


def actions_of(demonstration: Demonstration) -> np.ndarray:
    return np.stack([frame.action for frame in demonstration.frames])


@pytest.mark.parametrize("task", ["lift-green", "place-purple-white", "stack-red-blue"])
def test_recorded_actions_replay_to_success_at_the_last_one(task: str) -> None:
    settings = SimulatorSettings(episodes=3)
    recorded = list(demonstrate(task, settings, render=False))
    assert [demonstration.seed for demonstration in recorded] == [1000, 1001, 1002]
    with SimulatedArm(task, settings, render=False) as arm:
        for demonstration in recorded:
            actions = actions_of(demonstration)
            assert actions.dtype == np.float32
            assert replay(arm, demonstration.seed, actions)
            assert not replay(arm, demonstration.seed, actions[:-1])
        assert not replay(arm, recorded[0].seed + 500, actions_of(recorded[0]))


@pytest.mark.usefixtures("images")
def test_a_frame_has_the_observation_before_its_action() -> None:
    (demonstration,) = demonstrate("lift-red", SimulatorSettings(episodes=1, first_seed=5))
    with SimulatedArm("lift-red", SimulatorSettings(), render=True) as arm:
        observation = arm.reset(5)
        for frame in demonstration.frames:
            np.testing.assert_array_equal(frame.state, observation.state)
            for camera in ("overhead", "wrist"):
                np.testing.assert_array_equal(frame.images[camera], observation.images[camera])
            assert frame.task == "Pick up the red cube"
            step = arm.step(frame.action)
            observation = step.observation
        assert step.success


def test_a_disturbed_expert_corrects_itself() -> None:
    """It starts from many states, is moved off its plan, and its recorded actions are those of the plan."""
    settings = SimulatorSettings(episodes=8, disturbances=True)
    disturbed, again = (list(demonstrate("place-red-blue", settings, render=False)) for _ in range(2))
    calm = list(demonstrate("place-red-blue", SimulatorSettings(episodes=8), render=False))
    for one, other in zip(disturbed, again, strict=True):
        assert one.seed == other.seed
        np.testing.assert_array_equal(actions_of(one), actions_of(other))

    def starts(demonstrations: list[Demonstration]) -> int:
        return len({tuple(d.frames[0].state.round(1)) for d in demonstrations})

    def largest(demonstrations: list[Demonstration], what: str) -> float:
        """The largest change of the action from one step to the next, or distance of a state to the action before."""
        found = []
        for d in demonstrations:
            actions, states = actions_of(d)[:, :5], np.stack([frame.state for frame in d.frames])[:, :5]
            found.append(np.abs(np.diff(actions, axis=0) if what == "action" else states[1:] - actions[:-1]).max())
        return float(np.median(found))

    assert starts(calm) == 1
    assert starts(disturbed) > 3
    assert largest(disturbed, "state") > largest(calm, "state") + 2
    assert largest(disturbed, "action") < 2 * largest(calm, "action")


@pytest.mark.usefixtures("images")
def test_every_frame_of_a_disturbed_demonstration_has_images() -> None:
    frames = [
        f
        for d in demonstrate("lift-red", SimulatorSettings(episodes=3, image_size=32, disturbances=True))
        for f in d.frames
    ]
    assert {tuple(sorted(frame.images)) for frame in frames} == {("overhead", "wrist")}


def test_failed_seeds_are_skipped() -> None:
    with SimulatedArm("lift-red", WIDE, render=False) as arm:

        def succeeds(seed: int) -> bool:
            arm.reset(seed)
            return any(arm.step(action).success for action in plan_trajectory(arm))

        outcome = {seed: succeeds(seed) for seed in range(1000, 1040)}
    failing = next(seed for seed in range(1000, 1037) if not outcome[seed] and outcome[seed + 1] and outcome[seed + 2])
    settings = WIDE.model_copy(update={"first_seed": failing, "episodes": 2})
    assert [d.seed for d in demonstrate("lift-red", settings, render=False)] == [failing + 1, failing + 2]


def test_an_expert_that_mostly_fails_is_an_error() -> None:
    with pytest.raises(
        SimulatorError, match=r"succeeded on 0 of 2 seeds \(failed on 1000, 1001\), expected at least 95"
    ):
        list(demonstrate("lift-red", OUT_OF_REACH, render=False))


def test_the_key_changes_with_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = SimulatorSettings()
    others = {
        "episodes": 13,
        "disturbances": True,
        "first_seed": 1001,
        "image_size": 128,
        "spawn_radius_m": (0.09, 0.15),
        "spawn_half_angle_degrees": 26.0,
    }
    assert set(others) == set(SimulatorSettings.model_fields)
    keys = [demonstration_key("lift-red", usual), demonstration_key("lift-green", usual)]
    keys += [demonstration_key("lift-red", usual.model_copy(update={name: other})) for name, other in others.items()]
    monkeypatch.setattr(module, "RECORDER_VERSION", module.RECORDER_VERSION + 1)
    keys.append(demonstration_key("lift-red", usual))
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 64 and int(key, 16) >= 0 for key in keys)
    monkeypatch.undo()
    assert demonstration_key("lift-red", SimulatorSettings()) == keys[0]
    with pytest.raises(SimulatorError, match="does not exist"):
        demonstration_key("lift-rad", usual)
