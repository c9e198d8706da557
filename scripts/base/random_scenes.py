"""Render recorded arm poses with objects of other colors and at other places: frames that need no physics.

    python scripts/base/random_scenes.py recordings --out scenes --files 8

Each file has 500 frames of one motion. The arm's poses are those of recorded frames that are trained on. In 60 % of the
frames, cube and target lie somewhere else: these teach where objects lie (`n` is 0: they have no action). In the others
only the colors change, so the recorded actions stay valid. Colors are all pairs that `training_tasks.toml` allows. The
command can be stopped at any time; started again, it renders the files that are missing.
"""

import argparse
import sys
import tomllib
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from base_columns import HELD_OUT, recorded_files
from record import SIMULATOR, ReplayableArm

from zk0.simulator.tasks import COLORS, find_task
from zk0.storage.atomic import atomic_path

FRAMES = 500
"""Frames of one file."""
MOVED = 0.6
"""Share of the frames whose objects are moved."""
NEAR = 0.5
"""Share of the moved objects that stay close to where they were, so that the wrist camera sees them."""
NEAR_M = 0.02
LIFTED_M = 0.018
"""A cube whose center is higher does not lie on the table."""
HELD_M = 0.03
"""A lifted cube that is closer to the tool is held."""
CLEARANCE_M = 0.036
"""Two cubes on the table do not overlap, however they are turned."""
MOTIONS = ("lift", "place", "stack")
POSES = ("state", "chunk", "n", "cube", "cube_yaw", "goal", "goal_yaw", "site", "rot")
"""Columns of a recording without its images."""

Row = dict[str, Any]


def allowed_tasks(file: Path, motion: str) -> list[str]:
    """The tasks of this motion whose colors may be drawn."""
    drawn = tomllib.loads(file.read_text(encoding="utf-8"))["random"]
    cubes = product(drawn["cubes"], [""] if motion == "lift" else COLORS)
    names = ["-".join(filter(None, (motion, cube, onto))) for cube, onto in cubes if cube != onto]
    return [name for name in names if name not in drawn["excluded"]]


def read_poses(files: Sequence[Path]) -> dict[str, np.ndarray]:
    """Arm poses and objects of the frames that are trained on."""
    parts = []
    for file in files:
        with np.load(file) as columns:
            kept = columns["episode"] % HELD_OUT != HELD_OUT - 1
            parts.append({name: columns[name][kept] for name in POSES})
    return {name: np.concatenate([part[name] for part in parts]) for name in POSES}


def draw_row(poses: Mapping[str, np.ndarray], rng: np.random.Generator, motion: str) -> Row:
    """A recorded frame; `n` is 0 if its objects were moved."""
    index = rng.integers(len(poses["n"]))
    row = {name: values[index].copy() for name, values in poses.items()}
    held = _is_held(row)
    released = row["cube"][2] > LIFTED_M and not held
    if rng.random() >= MOVED or released or (held and motion == "lift"):
        return row
    while True:
        moved = row | {"n": np.int64(0)}
        if not held:
            moved |= _elsewhere(row, "cube", poses, rng)
        if motion != "lift":
            moved |= _elsewhere(row, "goal", poses, rng)
        apart = np.linalg.norm((moved["cube"] - moved["goal"])[:2])
        if motion != "stack" or held or apart > CLEARANCE_M:
            return moved


def _is_held(row: Row) -> bool:
    return bool(row["cube"][2] > LIFTED_M and np.linalg.norm(row["cube"] - row["site"]) < HELD_M)


def _elsewhere(row: Row, name: str, poses: Mapping[str, np.ndarray], rng: np.random.Generator) -> Row:
    """Another position on the table: close to this one, or where the object of another scene lies."""
    found = row[name].copy()
    if rng.random() < NEAR:
        found[:2] += rng.normal(0, NEAR_M, 2)
    else:
        other = poses[name][rng.integers(len(poses["n"]))]
        found[:2] = other[:2] + rng.normal(0, 0.01, 2)
    yaw = rng.uniform(-np.pi, np.pi) if np.isfinite(row[f"{name}_yaw"]) else np.nan
    return {name: found, f"{name}_yaw": yaw}


def set_objects(arm: ReplayableArm, row: Row) -> np.ndarray:
    """Color cube and target as the row's task says; return the joint positions of its scene."""
    from so101_nexus import dataset_row_to_sim_qpos
    from so101_nexus.constants import COLOR_MAP

    model, data = arm.physics
    task, qpos = find_task(row["task"]), data.qpos.copy()
    qpos[:6] = dataset_row_to_sim_qpos(row["state"].astype(np.float64))
    for name, body, color in (("cube", arm.task.cube_body, task.cube), ("goal", arm.task.goal_body, task.onto)):
        if body is None or color is None:
            continue
        found = model.body(body)
        model.geom_rgba[found.geomadr[0]] = COLOR_MAP[color]
        if found.jntnum[0]:
            at = model.jnt_qposadr[found.jntadr[0]]
            qpos[at : at + 3], qpos[at + 3 : at + 7] = row[name], _quaternion(row, name)
        else:
            model.body_pos[found.id] = row[name]
    return qpos


def _quaternion(row: Row, name: str) -> np.ndarray:
    """Rotation of a cube; a held one has the axes of the gripper (up to quarter turns, which one cannot see)."""
    import mujoco

    if name == "cube" and _is_held(row):
        quaternion = np.zeros(4)
        mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(row["rot"]).ravel())
        return quaternion
    return np.array([np.cos(row[f"{name}_yaw"] / 2), 0, 0, np.sin(row[f"{name}_yaw"] / 2)])


def render_file(path: Path, poses: Mapping[str, np.ndarray], tasks: Sequence[str], motion: str, seed: int) -> None:
    """Write one file of frames of one motion."""
    rng, rows = np.random.default_rng(seed), []
    with ReplayableArm(tasks[0], SIMULATOR, render=True) as arm:
        arm.reset(0, render=False)
        for _ in range(FRAMES):
            row = draw_row(poses, rng, motion) | {"task": str(rng.choice(tasks)), "episode": np.int64(0)}
            rows.append(row | arm.render_state(set_objects(arm, row)))
    columns = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in sorted(rows[0])}
    with atomic_path(path, keep_suffix=True) as temporary:
        np.savez(temporary, **columns)


def main() -> None:
    """Render the files that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path, help="folder of scripts/base/record.py")
    parser.add_argument("--tasks", type=Path, default=Path(__file__).with_name("training_tasks.toml"))
    parser.add_argument("--rounds", type=int, help="use the first recordings of each task only")
    parser.add_argument("--files", type=int, required=True, help="files of each motion")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    poses: dict[str, dict[str, np.ndarray]] = {}
    for part in range(arguments.files):
        for index, motion in enumerate(MOTIONS):
            path = arguments.out / f"{motion}-random-{part:03d}.npz"
            if path.is_file():
                continue
            if motion not in poses:
                poses[motion] = read_poses(recorded_files(arguments.recordings, f"{motion}-", arguments.rounds))
            render_file(path, poses[motion], allowed_tasks(arguments.tasks, motion), motion, 1_000 * index + part)
            sys.stdout.write(f"{path.name}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
