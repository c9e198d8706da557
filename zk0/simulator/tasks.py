"""The tasks of the simulated SO-101 arm. This module does not import the simulator."""

from collections.abc import Callable, Mapping
from itertools import permutations
from types import MappingProxyType
from typing import Literal

from pydantic import Field

from zk0.errors import SimulatorError
from zk0.records import DatasetReport, Record
from zk0.settings.dataset_settings import SO101_JOINTS, SimulatorSettings

SIMULATOR_SCHEME = "sim:"
FPS = 10
"""Actions and frames per simulated second."""
CAMERAS = ("overhead", "wrist")
"""Names of the simulated cameras."""
ROBOT_TYPE = "so101_follower"


class SimulatedTask(Record):
    """One task with one cube: lift it, place it on a disc, or stack it on another cube."""

    name: str
    env_id: str
    """Environment of so101-nexus."""
    motion: Literal["lift", "place", "stack"]
    text: str = Field(max_length=30)
    """The instruction that the policy reads; short, so that it has few tokens."""
    cube: str
    """Color of the moved cube."""
    onto: str | None = None
    """Color of its target: the disc (place) or the other cube (stack)."""

    @property
    def cube_body(self) -> str:
        """Name of the moved cube's body in the MuJoCo scene."""
        return "cube_a" if self.motion == "stack" else "pick_slot_0"

    @property
    def goal_body(self) -> str | None:
        """Name of the target's body in the MuJoCo scene; None for a lift."""
        return {"lift": None, "place": "target", "stack": "cube_b"}[self.motion]


def _lift(cube: str) -> SimulatedTask:
    return SimulatedTask(
        name=f"lift-{cube}", env_id="MuJoCoPickLift-v1", motion="lift", text=f"Pick up the {cube} cube", cube=cube
    )


def _place(cube: str, disc: str) -> SimulatedTask:
    return SimulatedTask(
        name=f"place-{cube}-{disc}",
        env_id="MuJoCoPickAndPlace-v2",
        motion="place",
        text=f"Put {cube} cube on {disc} disc",
        cube=cube,
        onto=disc,
    )


def _stack(cube: str, below: str) -> SimulatedTask:
    return SimulatedTask(
        name=f"stack-{cube}-{below}",
        env_id="MuJoCoStackCube-v1",
        motion="stack",
        text=f"Stack {cube} on {below} cube",
        cube=cube,
        onto=below,
    )


_LISTED = (
    _place("red", "blue"),
    _place("yellow", "green"),
    _place("purple", "white"),
    _lift("red"),
    _lift("green"),
    _stack("red", "blue"),
    _lift("yellow"),
    _lift("white"),
    _lift("blue"),
    _lift("purple"),
)
TASKS: Mapping[str, SimulatedTask] = MappingProxyType({task.name: task for task in _LISTED})
"""Name -> task, of the tasks that gymnasium registers and that error messages list."""
COLORS = ("black", "blue", "green", "orange", "purple", "red", "white", "yellow")
"""Colors of cubes and discs."""
_ON_TARGET: tuple[Callable[[str, str], SimulatedTask], ...] = (_place, _stack)
_ALL_TASKS = {
    task.name: task
    for task in (
        *map(_lift, COLORS),
        *(make(cube, onto) for make in _ON_TARGET for cube, onto in permutations(COLORS, 2)),
    )
}


def find_task(name: str) -> SimulatedTask:
    """Return the task of this name: `lift-CUBE`, `place-CUBE-DISC` or `stack-CUBE-BELOW`, with two different colors.

    Raises:
        SimulatorError: there is no such task; the message says which exist.

    >>> find_task("lift-red").text
    'Pick up the red cube'
    >>> find_task("stack-white-orange").text
    'Stack white on orange cube'
    """
    if name not in _ALL_TASKS:
        raise SimulatorError(
            f"simulated task {name!r} does not exist; expected one of {', '.join(TASKS)}, or another lift-CUBE, "
            f"place-CUBE-DISC or stack-CUBE-BELOW with two different colors of {', '.join(COLORS)}"
        )
    return _ALL_TASKS[name]


def describe_recordings(uri: str, settings: SimulatorSettings) -> DatasetReport:
    """Return what is known of a `sim:` dataset before it is recorded; the number of its frames is not.

    Raises:
        SimulatorError: there is no such task.

    >>> describe_recordings("sim:lift-red", SimulatorSettings()).tasks
    ('Pick up the red cube',)
    """
    task = find_task(uri.removeprefix(SIMULATOR_SCHEME))
    return DatasetReport(
        dataset=uri,
        root="",
        robot_type=ROBOT_TYPE,
        fps=FPS,
        episodes=settings.episodes,
        cameras=CAMERAS,
        state_names=SO101_JOINTS,
        action_names=SO101_JOINTS,
        tasks=(task.text,),
    )
