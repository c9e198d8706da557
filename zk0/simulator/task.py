"""The tasks of the simulated SO-101 arm. Naming one opens no simulator."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import Field

from zk0.errors import SimulatorError
from zk0.records import Record

FPS = 10
"""Actions, and frames, per simulated second."""


class SimulatedTask(Record):
    """One thing to do with one cube."""

    name: str
    env_id: str
    motion: Literal["lift", "place", "stack"]
    text: str = Field(max_length=30)
    """The instruction as the policy reads it; short, so that its tokens are few."""
    cube: str
    """Colour of the cube that is moved."""
    onto: str | None = None
    """Colour of the disc (place) or of the cube (stack) that it is moved onto."""

    @property
    def cube_body(self) -> str:
        """Name of the moved cube in the MuJoCo scene."""
        return "cube_a" if self.motion == "stack" else "pick_slot_0"

    @property
    def goal_body(self) -> str | None:
        """Name of what it is moved onto in the MuJoCo scene."""
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


_TASKS = (
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
TASKS: Mapping[str, SimulatedTask] = MappingProxyType({task.name: task for task in _TASKS})


def find_task(name: str) -> SimulatedTask:
    """The task of this name.

    Raises:
        SimulatorError: there is none; the message lists those there are.

    >>> find_task("lift-red").text
    'Pick up the red cube'
    """
    if name not in TASKS:
        raise SimulatorError(f"simulated task {name!r} does not exist; expected one of {', '.join(TASKS)}")
    return TASKS[name]
