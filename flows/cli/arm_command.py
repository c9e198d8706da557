"""`zk0 arm`: a policy on a real or simulated arm, by LeRobot's own command."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from flows.cli.arm_options import (
    check_keyboard,
    check_options_agree,
    missing_task,
    parse_camera_places,
    parse_rules,
    parse_size,
)
from flows.cli.command_group import command_group
from flows.cli.data_command import DEFAULT_CACHE, RenameOption, parse_renames
from flows.cli.errors_to_exit_codes import errors_to_exit_codes
from flows.cli.program_name import program_name
from zk0.errors import RobotError, SettingsError
from zk0.records import JointUnits, RobotReference
from zk0.settings.home_folder import expand_home
from zk0.storage.writable import check_writable

if TYPE_CHECKING:
    from zk0.robot.lerobot_command import RecordingOptions, RobotOptions

arm_app = command_group(
    "arm",
    "Run a policy on a real or simulated SO-101 arm, after a comparison with its training data.",
)


@arm_app.callback()
def arm() -> None:
    """Run a policy on a real or simulated SO-101 arm, after a comparison with its training data."""


@arm_app.command("run", context_settings={"allow_extra_args": True})
def arm_run(
    context: typer.Context,
    checkpoint: Annotated[str, typer.Argument(help="Folder of a policy or of a session, a name on the Hub, or base.")],
    robot: Annotated[
        str, typer.Option(help="LeRobot's robot type; so101_simulated rehearses on the simulated arm.")
    ] = "so101_follower",
    port: Annotated[str | None, typer.Option(help="Port of the arm, as lerobot-find-port prints it.")] = None,
    robot_id: Annotated[
        str, typer.Option("--id", help="Name of the arm, under which LeRobot keeps its calibration.")
    ] = "my_arm",
    camera: Annotated[
        list[str] | None, typer.Option(metavar="NAME=NUMBER", help="Number or path of each camera of the policy.")
    ] = None,
    camera_size: Annotated[str, typer.Option(metavar="WIDTHxHEIGHT", help="Resolution of the cameras.")] = "640x480",
    task: Annotated[
        str | None, typer.Option(help="Task text; unset: that of the training data, if it has only one.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Duration; with --record, of an episode.")] = 60.0,
    record: Annotated[
        Path | None, typer.Option(help="Record what the policy does as a LeRobot dataset in this new folder.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="With --record: number of episodes.")] = 10,
    leader: Annotated[
        str | None, typer.Option(help="With --record: port of a leader arm; a person's corrections are recorded.")
    ] = None,
    leader_type: Annotated[str, typer.Option(help="With --leader: LeRobot's teleoperator type.")] = "so101_leader",
    leader_id: Annotated[
        str, typer.Option(help="With --leader: name under which LeRobot keeps the leader's calibration.")
    ] = "my_leader",
    recordings: Annotated[
        str | None, typer.Option(help="Compare with this dataset of your arm instead of the policy's own reference.")
    ] = None,
    rename: RenameOption = None,
    units: Annotated[
        JointUnits | None,
        typer.Option(
            help="With --recordings: units of state and action, if neither joint names nor values show them; "
            "normalized is LeRobot's -100..100."
        ),
    ] = None,
    accept: Annotated[
        list[str] | None, typer.Option(metavar="RULE", help="Move although this rule is broken: camera-view.")
    ] = None,
    check_only: Annotated[bool, typer.Option("--check-only", help="Compare, print the command, move nothing.")] = False,
) -> None:
    """Compare an arm's first observation with the training data of a policy; if it fits, start lerobot-rollout.

    Cameras, joints, units and frame rate are those of the policy's contract. What does not fit stops the command before
    any motion. Options of lerobot-rollout may follow after --, such as -- --robot.task=lift-green.
    """
    with errors_to_exit_codes():
        from flows.cli.policy_argument import find_policy
        from zk0.policy.published_config import resolve_policy_path
        from zk0.robot.lerobot_command import RobotOptions, rollout_options

        check_options_agree(context)
        policy = find_policy(checkpoint)
        options = RobotOptions(
            type=robot,
            port=port,
            id=robot_id,
            cameras=parse_camera_places(camera or []),
            camera_size=parse_size(camera_size),
        )
        kept = _recording(record, episodes, leader, leader_type, leader_id)
        if leader is not None and not check_only:
            check_keyboard(context.args)
        accepted = parse_rules(accept or [])
        _check_complete(policy, options, context.args, task is None and recordings is None)
        reference = _reference(policy, recordings, parse_renames(rename or []), units)
        wanted = task if task is not None else _only_task(reference)
        command = rollout_options(resolve_policy_path(policy), wanted, seconds, options, reference, kept, context.args)
        _check_fit(command, wanted, reference, accepted)
        if not check_only and kept is not None:
            _print_next_steps(kept)
        _start(command, check_only)


def _check_complete(policy: str, robot: "RobotOptions", extra: Sequence[str], task_is_policys: bool) -> None:
    """Check the options against the policy alone, before recordings are read.

    Raises:
        SettingsError: names all that is missing or wrong.
    """
    from zk0.robot.lerobot_command import option_faults
    from zk0.robot.read_reference import policy_cameras, read_policy_reference

    faults = option_faults(robot, policy_cameras(policy), extra)
    if task_is_policys:
        faults += missing_task(read_policy_reference(policy))
    if faults:
        raise SettingsError("; ".join(faults))


def _recording(
    record: Path | None, episodes: int, leader: str | None, leader_type: str, leader_id: str
) -> "RecordingOptions | None":
    from zk0.robot.lerobot_command import RecordingOptions

    if record is None:
        return None
    if record.exists():
        raise SettingsError(f"--record {record}: exists already; give a new folder, and merge the datasets later")
    check_writable(record, "--record")
    return RecordingOptions(
        folder=record.absolute(), episodes=episodes, leader=leader, leader_type=leader_type, leader_id=leader_id
    )


def _reference(
    checkpoint: str, recordings: str | None, renames: dict[str, str], units: JointUnits | None
) -> RobotReference:
    from zk0.robot.read_reference import policy_cameras, read_policy_reference, recordings_reference

    if recordings is None:
        return read_policy_reference(checkpoint)
    from zk0.data.locate import locate
    from zk0.settings.dataset_settings import with_scheme

    uri = with_scheme(recordings)
    root = locate(uri, expand_home(DEFAULT_CACHE))
    return recordings_reference(uri, root, policy_cameras(checkpoint), renames, units)


def _only_task(reference: RobotReference) -> str:
    if faults := missing_task(reference):
        raise SettingsError(faults[0])
    return reference.tasks[0]


def _check_fit(command: Sequence[str], task: str, reference: RobotReference, accepted: frozenset[str]) -> None:
    """Print every mismatch.

    Raises:
        RobotError: there is one that is not accepted.
    """
    from zk0.robot.fit_check import robot_mismatches
    from zk0.robot.lerobot_robot import observe_robot

    typer.echo("connecting the robot and reading its first observation; nothing moves")
    found = robot_mismatches(observe_robot(command), task, reference)
    for one in found:
        typer.secho(f"{'accepted  ' if one.rule in accepted else ''}{one}", fg="yellow", err=True)
    if open_faults := [one.rule for one in found if one.rule not in accepted]:
        names = ", ".join(dict.fromkeys(open_faults))
        raise RobotError(
            f"nothing was moved: {len(open_faults)} difference(s) from the training data ({names}); correct them, or "
            f"add --accept {open_faults[0]} if that is meant to differ"
        )
    typer.secho(
        f"the arm fits the training data: {len(reference.cameras)} cameras, joints, units, pose, task", fg="green"
    )


def _print_next_steps(kept: "RecordingOptions") -> None:
    typer.echo(
        f"afterwards, look at the episodes: {program_name()} data check {shlex.quote(f'local:{kept.folder}')} "
        "(docs/robot.md says how to add them)"
    )


def _start(command: Sequence[str], check_only: bool) -> None:
    from zk0.robot.lerobot_command import COMMAND

    typer.echo(f"{program_name(COMMAND)} {shlex.join(command)}")
    if not check_only:
        _become_lerobot(COMMAND, command)


def _become_lerobot(name: str, options: Sequence[str]) -> NoReturn:
    """Replace this process by LeRobot's command, which then gets Ctrl-C and all signals itself."""
    import os
    import sys

    program = Path(sys.executable).with_name(name)
    os.execv(program, [name, *options])
