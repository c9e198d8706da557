"""Write robot.json of a base policy, with which `zk0 arm run` compares an arm before it moves.

    python scripts/base/describe_robot.py zk0/policy/smolvla/base_policy

State and units are those of the policy's own normalization. Task texts, first positions and first pictures are those of
the scenes in which `scripts/base/record.py` begins, so run it again when a policy takes the place of another one, or
when `scripts/base/training_tasks.toml` changes. It takes half a minute.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from record import SIMULATOR, Shard, plan_shards

from zk0.data.picture_cells import picture_cells
from zk0.data.statistics import compute_moments
from zk0.policy.carried_statistics import carried_statistics
from zk0.records import MAX_STARTS, CameraReference, Moments, RobotReference
from zk0.robot.read_reference import ROBOT_FILE, policy_cameras
from zk0.settings.dataset_settings import SO101_JOINTS
from zk0.simulator.arm import Observation, SimulatedArm
from zk0.simulator.tasks import FPS, find_task
from zk0.storage.atomic import atomic_write_text
from zk0.storage.sha256_sums import SUMS_FILE, renew_sums

TASKS = Path(__file__).with_name("training_tasks.toml")
STARTS = 10
"""Scenes of each task whose first positions count, and among which the pictures are chosen."""
Cells = np.ndarray
"""(scenes, cells, cells, 3) mean colors of the pictures of one camera."""


def robot_of(policy: str, shards: list[Shard]) -> RobotReference:
    """What a robot must be like for this policy, which was trained on these recordings."""
    starts = [one for shard in shards for one in first_observations(shard)]
    cameras = policy_cameras(policy)
    cells = {camera: np.stack([picture_cells(one.images[camera]) for one in starts]) for camera in cameras}
    chosen = most_different(np.stack(list(cells.values()), axis=1), MAX_STARTS)
    return RobotReference(
        cameras=tuple(CameraReference(name=name, pictures=whole_colors(one[chosen])) for name, one in cells.items()),
        joints=SO101_JOINTS,
        units="degrees",
        fps=FPS,
        tasks=tuple(sorted(find_task(shard.task).text for shard in shards)),
        state=carried_state(policy),
        start=compute_moments(np.stack([one.state for one in starts])),
    )


def first_observations(shard: Shard) -> list[Observation]:
    """The observations with which the first scenes of a file begin."""
    with SimulatedArm(shard.task, SIMULATOR, render=True) as arm:
        return [arm.reset(shard.first_seed + number) for number in range(STARTS)]


def most_different(pictures: Cells, most: int) -> list[int]:
    """Indices of so many rows that every other row is near one of them: each next one is the farthest of the rest.

    Few pictures then stand for scenes that differ much, such as a large disc before the wrist camera, or none.
    """
    rows = pictures.reshape(len(pictures), -1)
    chosen, apart = [0], np.abs(rows - rows[0]).mean(1)
    while len(chosen) < min(most, len(rows)):
        chosen.append(int(apart.argmax()))
        apart = np.minimum(apart, np.abs(rows - rows[chosen[-1]]).mean(1))
    return sorted(chosen)


def whole_colors(cells: Cells) -> tuple[tuple[int, ...], ...]:
    """The colors of each picture, row by row."""
    return tuple(tuple(one.round().astype(int).ravel().tolist()) for one in cells)


def carried_state(policy: str) -> Moments:
    """The moments of the states that the policy was trained on."""
    found = carried_statistics(policy)
    if found is None:
        raise SystemExit(f"{policy}: its preprocessor has no statistics; expected those of its training frames")
    return found.state


def main() -> None:
    """Write the file, and SHA256SUMS where the folder has one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path, help="folder of the policy, in which robot.json is written")
    parser.add_argument("--tasks", type=Path, default=TASKS, help="tasks that the policy was trained on")
    arguments = parser.parse_args()
    found = robot_of(str(arguments.policy), list(plan_shards(arguments.tasks, 1, Path())))
    atomic_write_text(arguments.policy / ROBOT_FILE, found.model_dump_json(indent=1) + "\n")
    if (arguments.policy / SUMS_FILE).is_file():
        renew_sums(arguments.policy, {ROBOT_FILE})
    sys.stdout.write(f"{arguments.policy / ROBOT_FILE}\n")


if __name__ == "__main__":
    main()
