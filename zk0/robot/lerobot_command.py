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
        SettingsError: an extra option is one that zk0 decides, or a camera is not given.
    """
    if twice := [option for option in extra if option.split("=")[0] in _DECIDED]:
        raise SettingsError(f"{twice[0]}: zk0 decides this option; use the option of `zk0 arm run` instead")
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
    if robot.port is None:
        raise SettingsError(f"--port is missing: the port of the {robot.type}, as lerobot-find-port prints it")
    names = [one.name for one in reference.cameras]
    if sorted(robot.cameras) != sorted(names):
        wanted = " ".join(f"--camera {name}=NUMBER" for name in names)
        raise SettingsError(
            f"cameras {', '.join(robot.cameras) or 'none'}; expected {wanted} with the numbers that "
            "lerobot-find-cameras prints"
        )
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
