"""robot.json of the base policy: that it belongs to the policy, lets its arm pass and stops every planted mistake."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli.main import zk0_app
from zk0.policy.carried_statistics import carried_statistics
from zk0.policy.published_config import BASE_POLICY_FOLDER
from zk0.records import RobotReference
from zk0.robot.fit_check import robot_mismatches
from zk0.robot.lerobot_robot import observe_robot
from zk0.robot.observation import RobotObservation
from zk0.robot.read_reference import ROBOT_FILE, read_policy_reference
from zk0.settings.dataset_settings import SO101_JOINTS, SimulatorSettings
from zk0.simulator.arm import SimulatedArm
from zk0.simulator.tasks import find_task
from zk0.storage.sha256_sums import SUMS_FILE, check_sums, sha256_of_folder, sums_text

TASKS = Path("scripts/base/training_tasks.toml")
AGAIN = "write it again: python scripts/base/describe_robot.py zk0/policy/smolvla/base_policy"
RUN = ["arm", "run", "base", "--robot", "so101_simulated", "--check-only"]
pytestmark = pytest.mark.usefixtures("base_scripts")


@pytest.fixture(scope="module")
def reference() -> RobotReference:
    return read_policy_reference("base")


@pytest.fixture(autouse=True)
def calibration_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lerobot.robots.robot.HF_LEROBOT_CALIBRATION", tmp_path)


def test_the_reference_belongs_to_the_policy(reference: RobotReference) -> None:
    from record import plan_shards

    carried = carried_statistics("base")
    assert carried is not None
    assert reference.state == carried.state, AGAIN
    assert set(reference.tasks) == {find_task(shard.task).text for shard in plan_shards(TASKS, 1, Path())}, AGAIN


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize("task", ["lift-green", "place-orange-blue", "place-purple-green", "stack-white-red"])
def test_no_scene_of_its_tasks_stops_the_arm(reference: RobotReference, task: str) -> None:
    with SimulatedArm(task, SimulatorSettings(), render=True) as arm:
        for seed in range(9000, 9010):
            first = arm.reset(seed)
            positions = dict(zip(SO101_JOINTS, first.state.tolist(), strict=True))
            seen = RobotObservation(positions, SO101_JOINTS, first.images, "degrees")
            assert robot_mismatches(seen, first.task, reference) == (), seed


@pytest.mark.usefixtures("images")
def test_every_planted_mistake_is_found(reference: RobotReference) -> None:
    from faulty_robot import FAULTS

    task = "Pick up the green cube"
    found = {}
    for fault in FAULTS:
        options = {"type": "so101_faulty", "id": "sim", "task": "lift-green", "fault": fault}
        options["use_degrees"] = str(fault != "normalized").lower()
        seen = observe_robot([f"--robot.{name}={value}" for name, value in options.items()])
        found[fault] = {one.rule for one in robot_mismatches(seen, task, reference)}
    assert found == {fault: {rule} for fault, (_, rule) in FAULTS.items()}


@pytest.mark.usefixtures("images")
def test_the_base_policy_is_rehearsed_without_recordings() -> None:
    done = CliRunner().invoke(zk0_app, [*RUN, "--task", "Pick up the green cube", "--", "--robot.task=lift-green"])
    assert done.exit_code == 0, done.output
    assert f"lerobot-rollout --policy.path={BASE_POLICY_FOLDER} --robot.type=so101_simulated" in done.stdout
    other = CliRunner().invoke(zk0_app, [*RUN, "--task", "Pick up the red cube", "--", "--robot.task=lift-red"])
    assert (other.exit_code, "task: found 'Pick up the red cube'" in other.stderr) == (1, True), other.output


@pytest.mark.usefixtures("images")
def test_another_policy_gets_a_reference_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import describe_robot

    policy = Path(shutil.copytree(BASE_POLICY_FOLDER, tmp_path / "policy"))
    (policy / ROBOT_FILE).unlink()
    (policy / SUMS_FILE).write_text(sums_text(sha256_of_folder(policy)))
    (tasks := tmp_path / "tasks.toml").write_text('[lift]\nframes = 1\ncubes = ["white"]\n')
    monkeypatch.setattr(sys, "argv", ["describe_robot.py", str(policy), "--tasks", str(tasks)])
    describe_robot.main()
    found = read_policy_reference(str(policy))
    assert found.tasks == ("Pick up the white cube",)
    assert [(one.name, len(one.pictures)) for one in found.cameras] == [
        ("overhead", describe_robot.STARTS),
        ("wrist", describe_robot.STARTS),
    ]
    assert ROBOT_FILE in check_sums(policy)


def test_chosen_pictures_are_far_from_each_other() -> None:
    from describe_robot import most_different

    colors = np.array([0, 1, 2, 100, 101, 50.0])
    pictures = np.broadcast_to(colors[:, None, None, None], (6, 4, 4, 3))
    assert most_different(pictures, 3) == [0, 4, 5]
    assert most_different(pictures[:2], 20) == [0, 1]


@pytest.mark.slow
@pytest.mark.usefixtures("images")
def test_the_stored_file_is_what_the_script_writes(reference: RobotReference) -> None:
    from describe_robot import robot_of
    from record import plan_shards

    made = robot_of("base", list(plan_shards(TASKS, 1, Path())))
    assert made.model_copy(update={"cameras": (), "start": None}) == reference.model_copy(
        update={"cameras": (), "start": None}
    ), AGAIN
    for stored, found in zip(reference.cameras, made.cameras, strict=True):
        apart = np.abs(np.array(stored.pictures) - np.array(found.pictures)).mean(1)
        assert apart.max() < 2, AGAIN  # another machine may render a little differently
