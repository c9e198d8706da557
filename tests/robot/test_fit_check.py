"""A robot's first observation against the training data: planted mistakes are found, a sound arm is not stopped."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner
from waiting import wait_until

from flows.cli.main import zk0_app
from zk0.errors import PolicyError, RobotError
from zk0.records import RobotReference
from zk0.settings.dataset_settings import SO101_JOINTS, SimulatorSettings

TASKS = ("lift-red", "lift-green", "place-red-blue")
SIZE = 96
pytestmark = pytest.mark.usefixtures("images")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes whose first frames are rendered; later frames have the expert's positions and the first pictures."""
    from zk0.data.dataset_writer import RecordedFrame, write_dataset
    from zk0.simulator.arm import SimulatedArm
    from zk0.simulator.expert import plan_trajectory

    def episodes() -> Iterator[list[RecordedFrame]]:
        for number, task in enumerate(TASKS):
            with SimulatedArm(task, SimulatorSettings(image_size=SIZE), render=True) as arm:
                for seed in range(10 * number, 10 * number + 2):
                    first = arm.reset(seed)
                    actions = plan_trajectory(arm)
                    states = [first.state, *actions[:-1]]
                    yield [RecordedFrame(s, a, first.images, first.task) for s, a in zip(states, actions, strict=True)]

    target = tmp_path_factory.mktemp("recorded") / "arm"
    write_dataset(target, episodes(), fps=10, joints=SO101_JOINTS, robot_type="so101_follower")
    return target


@pytest.fixture(scope="module")
def reference(recorded: Path) -> RobotReference:
    from zk0.robot.read_reference import recordings_reference

    return recordings_reference("local:arm", recorded, ("overhead", "wrist"), {}, "degrees")


def mismatches(reference: RobotReference, fault: str = "", text: str | None = None, **robot: Any) -> Any:
    from faulty_robot import FaultyFollower

    from zk0.robot.fit_check import robot_mismatches
    from zk0.robot.lerobot_robot import observe_robot

    options = {"type": "so101_faulty", "id": "sim", "image_size": SIZE, "fault": fault} | robot
    options["use_degrees"] = str(fault != "normalized").lower()
    before = FaultyFollower.motions
    seen = observe_robot([f"--robot.{name}={value}" for name, value in options.items()] + ["--fps=10"])
    assert FaultyFollower.motions == before
    return robot_mismatches(seen, reference.tasks[0] if text is None else text, reference)


def faults() -> list[str]:
    from faulty_robot import FAULTS

    return list(FAULTS)


@pytest.fixture(autouse=True)
def calibration_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lerobot.robots.robot.HF_LEROBOT_CALIBRATION", tmp_path)


@pytest.mark.parametrize("fault", faults())
def test_a_planted_mistake_is_found_before_any_motion(reference: RobotReference, fault: str) -> None:
    from faulty_robot import FAULTS

    found = mismatches(reference, fault)
    assert {one.rule for one in found} == {FAULTS[fault][1]}, [str(one) for one in found]
    assert all(one.advice for one in found)


@pytest.mark.parametrize("joint", SO101_JOINTS)
def test_an_offset_of_ten_degrees_is_called_one(reference: RobotReference, joint: str) -> None:
    """Also where the joint would fit in the place of another one."""
    from zk0.robot.joint_fit import joint_mismatches
    from zk0.robot.observation import RobotObservation

    bounds = reference.start or reference.state
    for place in (bounds.min, bounds.max):
        for sign in (-1, 1):
            pose = dict(zip(SO101_JOINTS, place, strict=True))
            pose[joint] = (bounds.max if sign > 0 else bounds.min)[SO101_JOINTS.index(joint)] + sign * 10
            found = list(joint_mismatches(RobotObservation(pose, SO101_JOINTS, {}, "degrees"), reference))
            assert [one.rule for one in found] == ["joint-offset"], (joint, sign, [str(one) for one in found])


def test_a_robot_that_states_no_units_is_stopped(reference: RobotReference) -> None:
    """Near its start the arm shows almost the same numbers in degrees and in -100..100."""
    from faulty_robot import HALF_RANGES

    from zk0.robot.joint_fit import joint_mismatches
    from zk0.robot.observation import RobotObservation

    mean = (reference.start or reference.state).mean
    for scale in (1.0, *((100 / half) for half in set(HALF_RANGES.values()))):
        pose = {joint: value * scale for joint, value in zip(SO101_JOINTS, mean, strict=True)}
        found = list(joint_mismatches(RobotObservation(pose, SO101_JOINTS, {}, None), reference))
        assert "units" in [one.rule for one in found]


@pytest.mark.parametrize(
    ("task", "advice"),
    [("Pick up the purple cube", "did you mean --task 'Pick up the "), ("", "give one of these with --task")],
)
def test_a_task_text_that_was_not_trained_is_found(reference: RobotReference, task: str, advice: str) -> None:
    found = mismatches(reference, text=task)
    assert [one.rule for one in found] == ["task"]
    assert found[0].advice.startswith(advice)


@pytest.mark.parametrize("path", ["/no/such/folder", "./outputs/s", "~/policy", "outputs/s/models/checkpoint_round_3"])
def test_a_policy_folder_that_is_not_there_is_not_looked_for_on_the_hub(path: str) -> None:
    from zk0.robot.read_reference import read_policy_reference

    with pytest.raises(PolicyError, match=r": no such folder; expected that of a policy"):
        read_policy_reference(path)


def test_a_sound_robot_is_not_stopped(reference: RobotReference) -> None:
    assert mismatches(reference) == ()


@pytest.mark.parametrize("task", TASKS)
def test_no_scene_of_the_tasks_stops_the_arm(reference: RobotReference, task: str) -> None:
    from zk0.robot.fit_check import robot_mismatches
    from zk0.robot.observation import RobotObservation
    from zk0.simulator.arm import SimulatedArm

    with SimulatedArm(task, SimulatorSettings(image_size=SIZE), render=True) as arm:
        for seed in range(9000, 9004):
            first = arm.reset(seed)
            positions = dict(zip(SO101_JOINTS, first.state.tolist(), strict=True))
            found = robot_mismatches(
                RobotObservation(positions, SO101_JOINTS, first.images, "degrees"), first.task, reference
            )
            assert found == (), (seed, [str(one) for one in found])


@pytest.fixture
def checkpoint(reference: RobotReference, tmp_path: Path) -> Path:
    """What the command reads of a policy before it starts LeRobot."""
    from zk0.robot.read_reference import ROBOT_FILE

    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / ROBOT_FILE).write_text(reference.model_dump_json())
    features = {f"observation.images.{one.name}": {"type": "VISUAL"} for one in reference.cameras}
    (tmp_path / "policy" / "config.json").write_text(json.dumps({"type": "smolvla", "input_features": features}))
    return tmp_path / "policy"


def arm_run(checkpoint: Path, *options: str, fault: str = "", task: str = "Pick up the red cube") -> Any:
    import faulty_robot  # noqa: F401 -- registers the robot

    robot = [f"--robot.image_size={SIZE}", f"--robot.fault={fault}"]
    command = ["arm", "run", str(checkpoint), "--robot", "so101_faulty", "--task", task, "--check-only", *options]
    return CliRunner().invoke(zk0_app, [*command, "--", *robot])


def test_the_command_stops_with_what_to_do(checkpoint: Path) -> None:
    done = arm_run(checkpoint, fault="wrist in BGR", task="Pick up the red cub")
    assert done.exit_code == 1
    assert "camera-view: found wrist: a picture that looks red and blue exchanged" in done.stderr
    assert "did you mean --task 'Pick up the red cube'?" in done.stderr
    assert "nothing was moved: 2 difference(s) from the training data (task, camera-view)" in done.stderr
    assert "lerobot-rollout" not in done.stdout


def test_an_accepted_rule_and_a_sound_robot_print_the_command(checkpoint: Path) -> None:
    accepted = arm_run(checkpoint, "--accept", "camera-view", fault="wrist in BGR")
    assert accepted.exit_code == 0, accepted.output
    assert "accepted  camera-view" in accepted.stderr
    sound = arm_run(checkpoint)
    assert "the arm fits the training data" in sound.stdout
    assert f"lerobot-rollout --policy.path={checkpoint} --robot.type=so101_faulty" in sound.stdout
    assert "--fps=10" in sound.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--accept", "all"], "--accept all: no such rule; expected one of camera-black, "),
        (["--leader", "/dev/ttyACM1"], "--leader without --record has no effect"),
        (["--episodes", "3"], "--episodes without --record has no effect"),
        (["--record", "/tmp/new", "--leader-type", "so100_leader"], "--leader-type without --leader has no effect"),
        (["--units", "degrees"], "--units without --recordings has no effect"),
        (["--record", "/tmp/new", "--leader", "/dev/a", "--port", "/dev/a"], "--leader /dev/a: that is the port of"),
        (["--record", "/tmp/new", "--leader", "/dev/a"], "LeRobot can read none here; run the command in a terminal"),
        (["--record", "/proc/new"], "--record: /proc/new cannot be made"),
        (["--camera", "wrist=0", "--camera", "wrist=2"], "--camera wrist=2: this name or number is given twice"),
        (["--camera", "wrist=0", "--camera", "top=0"], "--camera top=0: this name or number is given twice"),
        (["--record", "/tmp"], "--record /tmp: exists already"),
        (["--camera", "wrist"], "--camera wrist: expected NAME=NUMBER"),
        (["--camera-size", "640"], "--camera-size 640: expected WIDTHxHEIGHT"),
        (
            ["--recordings", "/no/such/dataset"],
            "--port is missing: the port of the so101_follower, as lerobot-find-port prints it; "
            "--camera overhead=NUMBER --camera wrist=NUMBER is missing: the numbers that lerobot-find-cameras prints",
        ),
        (["--camera", "wrist=0", "--port", "p"], "that lerobot-find-cameras prints; --task is missing; the policy kno"),
    ],
)
def test_wrong_options_end_the_command_first(checkpoint: Path, options: list[str], message: str) -> None:
    done = CliRunner().invoke(zk0_app, ["arm", "run", str(checkpoint), *options])
    assert (done.exit_code, message in done.stderr) == (2, True), done.output


def test_a_robot_with_a_misspelled_type_is_named(checkpoint: Path) -> None:
    done = CliRunner().invoke(
        zk0_app, ["arm", "run", str(checkpoint), "--robot", "so101_simulatd", "--task", "x", "--check-only"]
    )
    assert done.exit_code == 1
    assert "no robot 'so101_simulatd', expected one of " in done.stderr
    assert "did you mean so101_simulated?" in done.stderr
    assert "usage" not in done.output


def test_an_arm_that_is_not_there_is_known_to_lerobot() -> None:
    """Its driver is missing, or its port; type and camera of the options are known."""
    from zk0.robot.lerobot_robot import observe_robot

    camera = "{wrist: {type: opencv, index_or_path: 2, width: 640, height: 480, fps: 30}}"
    options = {"type": "so101_follower", "id": "my_arm", "port": "/dev/no-arm", "cameras": camera}
    with pytest.raises(RobotError, match=r"the robot cannot be connected \((ImportError: .*feetech|\w+: .*no-arm)"):
        observe_robot([f"--robot.{name}={value}" for name, value in options.items()])


def test_a_policy_without_a_reference_needs_recordings(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"input_features": {"observation.images.wrist": {}}}')
    done = CliRunner().invoke(zk0_app, ["arm", "run", str(tmp_path), "--robot", "so101_simulated"])
    assert (done.exit_code, "give recordings of your robot to compare with" in done.stderr) == (1, True), done.output


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_fitting_arm_is_moved_and_recorded(recorded: Path, tmp_path: Path) -> None:
    """The real commands, with the policy `base`; what was recorded passes the check."""
    from zk0.data.check import check_dataset

    command = [sys.executable, "-m", "flows.cli.main", "arm", "run", "base", "--robot", "so101_simulated"]
    command += ["--recordings", str(recorded), "--units", "degrees", "--task", "Pick up the red cube", "--seconds", "1"]
    command += ["--record", str(tmp_path / "tries"), "--episodes", "1", "--", "--device=cpu", "--play_sounds=false"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the arm fits the training data" in done.stdout
    report = check_dataset(tmp_path / "tries", dataset="tries")
    assert (report.errors, report.episodes, report.tasks) == ((), 1, ("Pick up the red cube",))


def press(keyboard: int, arm: subprocess.Popen[bytes], log: Path, steps: Mapping[str, bytes]) -> None:
    """Press each key as soon as LeRobot logs its message."""
    for message, key in steps.items():
        wait_until(lambda message=message: message in log.read_text() or arm.poll() is not None, 600)
        assert message in log.read_text(), log.read_text()[-3000:]
        os.write(keyboard, key)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_persons_correction_joins_the_recordings(recorded: Path, tmp_path: Path) -> None:
    """LeRobot's DAgger mode as docs/robot.md walks it: space pauses the policy, Tab begins and ends a correction."""
    from scripted_leader import DEGREES_PER_READING

    from zk0.data.check import check_dataset
    from zk0.data.episode_digests import episode_digest
    from zk0.data.episode_reader import EpisodeReader
    from zk0.data.frame_table import EpisodeFrames

    command = [sys.executable, "-m", "flows.cli.main", "arm", "run", "base", "--robot", "so101_simulated"]
    command += ["--recordings", str(recorded), "--units", "degrees", "--task", "Pick up the red cube"]
    command += ["--record", str(tmp_path / "corrections"), "--episodes", "1", "--leader", "none"]
    command += ["--leader-type", "so101_scripted", "--", "--device=cpu", "--play_sounds=false"]
    command += ["--teleop.discover_packages_path=scripted_leader", f"--teleop.calibration_dir={tmp_path}"]
    log = tmp_path / "lerobot.log"
    keyboard, terminal = pty.openpty()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with log.open("w") as output:
        arm = subprocess.Popen(command, stdin=terminal, stdout=output, stderr=output, env=environment)
    try:
        keys = {"corrections-only recording started": b" ", "autonomous -> paused": b"\t", "Entering correction": b""}
        press(keyboard, arm, log, keys)
        before = log.read_text().count("scripted leader: reading")
        wait_until(lambda: log.read_text().count("scripted leader: reading") > before + 20, 400)
        os.write(keyboard, b"\t")
        assert arm.wait(200) == 0, log.read_text()[-3000:]
    finally:
        arm.kill()
        arm.wait()
        os.close(keyboard)
        os.close(terminal)
    found = check_dataset(tmp_path / "corrections", dataset="corrections")
    assert (found.errors, found.episodes, found.tasks) == ((), 1, ("Pick up the red cube",))
    (episode,) = EpisodeReader(tmp_path / "corrections").read([0])
    assert len(episode.actions) >= 10
    np.testing.assert_allclose(np.diff(episode.actions[:, 0]), DEGREES_PER_READING, atol=1e-3)  # the leader's, in order

    merged = tmp_path / "merged"
    joined = ["data", "merge", str(tmp_path / "corrections"), str(recorded), "--output", str(merged)]
    done = CliRunner().invoke(zk0_app, [*joined, "--robot-type", "so101_follower"])
    assert "left out  intervention, which only " in done.stdout, done.output
    both = check_dataset(merged, dataset="merged")
    assert (both.errors, both.episodes) == ((), 7)
    assert episode_digest(EpisodeFrames(episode.states, episode.actions)) in _next_session(merged, tmp_path)


def _next_session(dataset: Path, folder: Path) -> tuple[str, ...]:
    """Run a small session with this dataset; return the digests of the episodes that its client trained on."""
    from zk0.evaluation.session_setup import SessionSetup
    from zk0.storage.session_folder import SessionFolder

    clients = f'clients=[{{name="arm", dataset="local:{dataset}"}}, {{name="other", dataset="sim:place-red-blue"}}]'
    settings = (clients, f"simulator.image_size={SIZE}", "rollout.tasks=[]", f"output_dir={folder / 'outputs'}")
    command = [sys.executable, "-m", "flows.cli.main", "run", "smoke"]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    (session,) = (folder / "outputs").iterdir()
    setup = SessionSetup.read_from(SessionFolder(session).setup)
    assert setup is not None
    return next(member.train_digests for member in setup.members if member.client == "arm")
