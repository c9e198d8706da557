"""Record the training frames of the base policy: many scenes of many tasks, a few frames of each.

    python scripts/base/record.py --out recordings --rounds 17 --processes 2

Each round adds a file of ten scenes to every task of `scripts/base/training_tasks.toml`. The command can be stopped at
any time; started again, it records the files that are missing. Files do not depend on the number of processes.

The scripted expert is disturbed and corrects itself (`zk0.simulator.disturbances`). Rendering a frame costs forty times
the physics of a step, so episodes run without rendering, and a few frames of the successful ones are rendered
afterwards.
"""

import argparse
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zk0.processes import die_with_parent
from zk0.settings.dataset_settings import SimulatorSettings
from zk0.simulator.arm import Observation, SimulatedArm
from zk0.simulator.disturbances import attempt_with_disturbances
from zk0.storage.atomic import atomic_path

CHUNK = 10
SCENES = 10
"""Scenes of one file."""
FIRST_SEED = 1_500_000_000
"""Above all seeds that sessions draw recordings and evaluations from."""
SIMULATOR = SimulatorSettings(spawn_radius_m=(0.085, 0.145), spawn_half_angle_degrees=28.0)
"""Scenes vary a little more than those of sessions."""


class Shard(NamedTuple):
    """One file of recordings."""

    task: str
    frames: int
    first_seed: int
    path: Path


class ReplayableArm(SimulatedArm):
    """An arm that can render any earlier state of its scene."""

    def render_state(self, qpos: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return the images of both cameras for the joint positions of a scene."""
        import mujoco

        model, data = self.physics
        data.qpos[:], data.qvel[:] = qpos, 0
        mujoco.mj_forward(model, data)
        return self._observation(self._environment()._get_obs()).images


def _yaw(quaternion: np.ndarray) -> float:
    w, x, y, z = quaternion
    return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


def describe_step(arm: SimulatedArm, state: np.ndarray, rest: np.ndarray) -> dict[str, Any]:
    """Return one time step: the expert's next actions, and the positions of everything in the scene."""
    from so101_nexus import SO101_TCP_SITE_NAME

    model, data = arm.physics
    site = model.site(SO101_TCP_SITE_NAME).id
    cube, goal = data.body(arm.task.cube_body), arm.task.goal_body
    left = min(CHUNK, len(rest))
    return {
        "state": state,
        "chunk": np.concatenate([rest[:left], np.repeat(rest[left - 1 : left], CHUNK - left, 0)]),
        "n": left,
        "cube": cube.xpos.copy(),
        "cube_yaw": _yaw(cube.xquat),
        "goal": data.body(goal).xpos.copy() if goal else np.full(3, np.nan),
        "goal_yaw": _yaw(data.body(goal).xquat) if arm.task.motion == "stack" else np.nan,
        "site": data.site_xpos[site].copy(),
        "rot": data.site_xmat[site].reshape(3, 3).copy(),
        "qpos": data.qpos.copy(),
    }


def run_episode(arm: SimulatedArm, seed: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return the time steps of one disturbed episode; none if it failed."""
    steps: list[dict[str, Any]] = []

    def keep(observation: Observation, plan: np.ndarray, _: bool) -> None:
        steps.append(describe_step(arm, observation.state, plan))

    return steps if attempt_with_disturbances(arm, seed, rng, keep, render=False) else []


def record(shard: Shard) -> Path:
    """Record one file: the columns of all chosen frames, and the name of the task."""
    rng, rows, found, seed = np.random.default_rng(shard.first_seed), [], 0, shard.first_seed
    with ReplayableArm(shard.task, SIMULATOR, render=True) as arm:
        while found < SCENES:
            steps, seed = run_episode(arm, seed, rng), seed + 1
            if not steps:
                continue
            for index in rng.choice(len(steps), min(shard.frames, len(steps)), replace=False):
                rows.append({**steps[index], **arm.render_state(steps[index]["qpos"]), "episode": found})
            found += 1
    names = rows[0].keys() - {"qpos"}
    columns = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in sorted(names)}
    with atomic_path(shard.path, keep_suffix=True) as temporary:
        np.savez(temporary, task=np.array(shard.task), **columns)
    return shard.path


def plan_shards(tasks: Path, rounds: int, out: Path) -> Iterator[Shard]:
    """Yield all files, one of each task before the next one of any, so that a stopped recording is balanced."""
    chosen = [
        (f"{motion}-{'-'.join([colors] if isinstance(colors, str) else colors)}", motions["frames"])
        for motion, motions in tomllib.loads(tasks.read_text(encoding="utf-8")).items()
        if motion != "random"
        for colors in motions.get("cubes", []) + motions.get("pairs", [])
    ]
    for part in range(rounds):
        for index, (task, frames) in enumerate(chosen):
            seed = FIRST_SEED + 1_000_000 * index + 1_000 * part
            yield Shard(task, frames, seed, out / f"{task}-{part:03d}.npz")


def main() -> None:
    """Record the files that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, default=Path(__file__).with_name("training_tasks.toml"))
    parser.add_argument("--rounds", type=int, required=True, help="files of each task")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    shards = list(plan_shards(arguments.tasks, arguments.rounds, arguments.out))
    missing = [shard for shard in shards if not shard.path.is_file()]
    parent = (os.getpid(),)
    with ProcessPoolExecutor(arguments.processes, get_context("spawn"), die_with_parent, parent) as pool:
        jobs = [pool.submit(record, shard) for shard in missing]
        for done, job in enumerate(as_completed(jobs), len(shards) - len(missing) + 1):
            sys.stdout.write(f"{done} of {len(shards)}: {job.result().name}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
