"""LeRobot's own command that runs a policy on a robot, with everything that the policy's contract decides."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from zk0.errors import SettingsError
from zk0.records import Record, RobotReference

COMMAND = "lerobot-rollout"
SIMULATED_ROBOT = "so101_simulated"
SO_FOLLOWERS = ("so100_follower", "so101_follower")
"""Robots whose port, cameras and units zk0 writes; the options of other robots are passed on."""
SO_LEADERS = ("so100_leader", "so101_leader")
"""Leader arms whose units zk0 writes; the options of others are passed on."""
_DECIDED = ("--policy.path", "--robot.type", "--robot.id", "--task", "--fps", "--duration", "--strategy.type")
"""Options that zk0 writes itself."""


class RobotOptions(Record):
    """What the owner of a robot decides."""

    type: str = "so101_follower"
    """LeRobot's robot type."""
    port: str | None = None
    id: str = "my_arm"
    """Names the robot's calibration."""
    cameras: dict[str, str] = {}
    """Camera -> its number or path."""
    camera_size: tuple[int, int] = (640, 480)
    camera_fps: int = Field(default=30, ge=1, le=1000)


class RecordingOptions(Record):
    """Whether and how LeRobot records what the policy does."""

    folder: Path
    """Folder of the dataset; LeRobot creates it."""
    episodes: int = Field(ge=1, le=100_000)
    leader: str | None = None
    """Port of a leader arm, with which a person corrects the policy; then the corrections are recorded."""
    leader_type: str = "so101_leader"
    """LeRobot's teleoperator type."""
    leader_id: str = "my_leader"
    """Names the leader's calibration."""


def option_faults(robot: RobotOptions, cameras: Sequence[str], extra: Sequence[str] = ()) -> list[str]:
    """Return everything that is missing, or must not be given, in what the owner decides.

    Args:
        robot: what the owner decides.
        cameras: those of the policy.
        extra: further options of `lerobot-rollout`.
    """
    decided = [option for option in extra if option.split("=")[0] in _DECIDED]
    faults = [f"{option}: zk0 decides this option; use the option of `zk0 arm run` instead" for option in decided]
    return faults + (_follower_faults(robot, cameras) if robot.type in SO_FOLLOWERS else _other_robot_faults(robot))


def _other_robot_faults(robot: RobotOptions) -> list[str]:
    given = [name for name, value in (("--port", robot.port), ("--camera", robot.cameras)) if value]
    own = "the simulated arm has its own" if robot.type == SIMULATED_ROBOT else "give its own options after --"
    return [f"{name} has no effect with --robot {robot.type}: {own}" for name in given]


def _follower_faults(robot: RobotOptions, cameras: Sequence[str]) -> list[str]:
    faults = []
    if robot.port is None:
        faults.append(f"--port is missing: the port of the {robot.type}, as lerobot-find-port prints it")
    if missing := [name for name in cameras if name not in robot.cameras]:
        options = " ".join(f"--camera {name}=NUMBER" for name in missing)
        faults.append(f"{options} is missing: the numbers that lerobot-find-cameras prints")
    if unknown := [name for name in robot.cameras if name not in cameras]:
        faults.append(f"--camera {', '.join(unknown)}: the policy has no such camera, only {', '.join(cameras)}")
    return faults


def rollout_options(
    policy: str,
    task: str,
    seconds: float,
    robot: RobotOptions,
    reference: RobotReference,
    recording: RecordingOptions | None = None,
    extra: Sequence[str] = (),
) -> list[str]:
    """Return the options of `lerobot-rollout`.

    Args:
        policy: folder or name on the Hub.
        task: text of the task.
        seconds: duration; with a recording, that of an episode.
        robot: what the owner decides.
        reference: decides cameras, units and frame rate.
        recording: None records nothing.
        extra: further options, passed on as they are.

    Raises:
        SettingsError: an extra option is one that zk0 decides, or the port or a camera is missing or unknown.
    """
    if faults := option_faults(robot, [one.name for one in reference.cameras], extra):
        raise SettingsError("; ".join(faults))
    how_long = [] if recording else [f"--duration={seconds:g}"]
    return [
        f"--policy.path={policy}",
        *_robot_options(robot, reference),
        f"--task={task}",
        f"--fps={reference.fps:g}",
        *how_long,
        *(_recording_options(recording, seconds, reference) if recording else ()),
        *extra,
    ]


def _robot_options(robot: RobotOptions, reference: RobotReference) -> list[str]:
    options = [f"--robot.type={robot.type}", f"--robot.id={robot.id}"]
    if robot.type == SIMULATED_ROBOT:
        return [*options, "--return_to_initial_position=false"]
    if robot.type not in SO_FOLLOWERS:
        return options
    names = [one.name for one in reference.cameras]
    cameras = ", ".join(f"{name}: {_camera(robot.cameras[name], robot)}" for name in names)
    return [
        *options,
        f"--robot.port={robot.port}",
        f"--robot.use_degrees={_in_degrees(reference)}",
        f"--robot.cameras={{{cameras}}}",
    ]


def _camera(place: str, robot: RobotOptions) -> str:
    width, height = robot.camera_size
    return f"{{type: opencv, index_or_path: {place}, width: {width}, height: {height}, fps: {robot.camera_fps}}}"


def _recording_options(recording: RecordingOptions, seconds: float, reference: RobotReference) -> list[str]:
    """Episodes of the policy; with a leader arm, the corrections of a person (LeRobot's DAgger mode)."""
    name = f"local/rollout_{recording.folder.name}"
    options = [
        f"--dataset.repo_id={name}",
        f"--dataset.root={recording.folder}",
        "--dataset.push_to_hub=false",
        f"--dataset.fps={reference.fps:g}",
        f"--dataset.num_episodes={recording.episodes}",
        f"--dataset.episode_time_s={seconds:g}",
        "--dataset.rgb_encoder.vcodec=h264",
    ]
    if recording.leader is None:
        return ["--strategy.type=episodic", *options]
    leader = [
        f"--teleop.type={recording.leader_type}",
        f"--teleop.port={recording.leader}",
        f"--teleop.id={recording.leader_id}",
    ]
    units = [f"--teleop.use_degrees={_in_degrees(reference)}"] if recording.leader_type in SO_LEADERS else []
    return ["--strategy.type=dagger", *leader, *units, *options]


def _in_degrees(reference: RobotReference) -> str:
    return str(reference.units == "degrees").lower()
