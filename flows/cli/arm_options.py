"""The options of `zk0 arm run`: parsed, and refused where they do not go together."""

from collections.abc import Sequence

import typer

from zk0.errors import SettingsError
from zk0.records import RobotReference

_NEEDS = {
    "episodes": "record",
    "leader": "record",
    "leader_type": "leader",
    "leader_id": "leader",
    "rename": "recordings",
    "units": "recordings",
}
"""Option -> the one without which it has no effect."""


def check_options_agree(context: typer.Context) -> None:
    """Refuse an option that would have no effect, and one port for both arms.

    Raises:
        SettingsError: there is one.
    """
    for option, needed in _NEEDS.items():
        source = context.get_parameter_source(option)
        if source is not None and source.name == "COMMANDLINE" and context.params[needed] is None:
            name, other = (f"--{one.replace('_', '-')}" for one in (option, needed))
            raise SettingsError(f"{name} without {other} has no effect; give {other}, too, or leave {name} out")
    if context.params["leader"] is not None and context.params["leader"] == context.params["port"]:
        raise SettingsError(
            f"--leader {context.params['leader']}: that is the port of the arm, too; lerobot-find-port prints each"
        )


def check_keyboard(extra: Sequence[str]) -> None:
    """Refuse to begin corrections that no key can start.

    Raises:
        SettingsError: LeRobot can read neither keys nor a pedal.
    """
    from zk0.robot.lerobot_robot import reads_keys

    if "--strategy.input_device=pedal" not in extra and not reads_keys():
        raise SettingsError(
            "--leader: corrections begin with a key, and LeRobot can read none here; run the command in a terminal "
            "(ssh -t), or with a pedal: -- --strategy.input_device=pedal"
        )


def missing_task(reference: RobotReference) -> list[str]:
    """Return the fault that --task is missing, where the policy was trained with none or several task texts."""
    if len(reference.tasks) == 1:
        return []
    return [f"--task is missing; the policy knows: {'; '.join(reference.tasks[:10]) or 'no text'}"]


def parse_camera_places(pairs: Sequence[str]) -> dict[str, str]:
    """Parse NAME=NUMBER pairs.

    >>> parse_camera_places(["overhead=0", "wrist=/dev/video2"])
    {'overhead': '0', 'wrist': '/dev/video2'}
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, place = (part.strip() for part in pair.partition("="))
        if not (name and equals and place) or set(place) & set("{},:"):
            raise SettingsError(f"--camera {pair}: expected NAME=NUMBER or NAME=/dev/videoN, such as wrist=2")
        if name in found or place in found.values():
            raise SettingsError(f"--camera {pair}: this name or number is given twice; each camera has its own")
        found[name] = place
    return found


def parse_size(text: str) -> tuple[int, int]:
    """Parse a resolution.

    >>> parse_size("640x480")
    (640, 480)
    """
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise SettingsError(f"--camera-size {text}: expected WIDTHxHEIGHT, such as 640x480")
    return int(width), int(height)


def parse_rules(rules: Sequence[str]) -> frozenset[str]:
    from zk0.robot.fit_check import RULES

    if unknown := [rule for rule in rules if rule not in RULES]:
        raise SettingsError(f"--accept {unknown[0]}: no such rule; expected one of {', '.join(RULES)}")
    return frozenset(rules)
