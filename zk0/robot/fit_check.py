"""Whether a policy fits a robot, before anything moves."""

from collections.abc import Iterator
from difflib import get_close_matches

from zk0.records import Mismatch, RobotReference
from zk0.robot.camera_fit import camera_mismatches
from zk0.robot.joint_fit import joint_mismatches
from zk0.robot.observation import RobotObservation

RULES = (
    "camera-black",
    "camera-missing",
    "camera-uniform",
    "camera-view",
    "cameras-exchanged",
    "joint-names",
    "joint-offset",
    "joint-order",
    "start-pose",
    "task",
    "units",
)
"""All rules, by their names in `Mismatch.rule`."""
_SHOWN_TASKS = 10


def robot_mismatches(seen: RobotObservation, task: str, reference: RobotReference) -> tuple[Mismatch, ...]:
    """Return everything in which a robot and its task differ from the training data of a policy.

    Args:
        seen: the robot's first observation.
        task: text of the task.
        reference: of the policy, or of recordings.
    """
    return (
        *task_mismatches(task, reference),
        *joint_mismatches(seen, reference),
        *camera_mismatches(seen.pictures, reference.cameras),
    )


def task_mismatches(task: str, reference: RobotReference) -> Iterator[Mismatch]:
    """Yield a mismatch if the policy was trained on task texts, and not on this one, letter by letter."""
    if task in reference.tasks or not reference.tasks:
        return
    near = get_close_matches(task, reference.tasks, n=1, cutoff=0.6)
    known = "; ".join(reference.tasks[:_SHOWN_TASKS])
    yield Mismatch(
        rule="task",
        found=repr(task[:200]),
        expected=f"a text of the training data: {known}",
        advice=f"did you mean --task {near[0]!r}?" if near else "give one of these with --task",
    )
