"""Frames to make the base policy from: one task of the simulator, many scenes, a few frames of each.

    python scripts/base/record.py lift-green --episodes 260 --frames 5 --first-seed 601000000 --out lift-green.npz

The scripted expert is disturbed: noise on what is carried out, and detours after which it plans anew. What is kept as
the action is what the undisturbed expert would do from there, so a policy learns to come back (DART, arXiv
1703.09327).
Rendering a frame costs forty times the physics of a step. So episodes run unseen, and a few frames of those that
succeeded are rendered afterwards.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from so101_nexus import SO101_TCP_SITE_NAME

from zk0.session import SimulatorSettings
from zk0.simulator.environment import SimulatedArm
from zk0.simulator.expert import plan

CHUNK = 10
DETOURS = 0.7
"""Share of episodes with one or two detours."""


class FilmedLater(SimulatedArm):
    """An arm that can be looked at in any state it was in."""

    def look_back(self, qpos: np.ndarray) -> Mapping[str, np.ndarray]:
        """What both cameras saw of a scene."""
        import mujoco

        model, data = self.physics
        data.qpos[:], data.qvel[:] = qpos, 0
        mujoco.mj_forward(model, data)
        return self._observation(self._opened()._get_obs()).images


def disturbance_degrees(step: int) -> float:
    """Standard deviation of the noise at a step of the plan: large on the way, small where the jaws close."""
    return 3.5 if step < 9 else 0.7 if step < 19 else 2.0 if step < 30 else 0.7


def note(arm: SimulatedArm, state: np.ndarray, rest: np.ndarray) -> dict[str, Any]:
    """One moment: what the expert would do next, and where everything is."""
    model, data = arm.physics
    site = model.site(SO101_TCP_SITE_NAME).id
    goal = arm.task.goal_body
    left = min(CHUNK, len(rest))
    w, x, y, z = data.body(arm.task.cube_body).xquat
    return {
        "state": state,
        "chunk": np.concatenate([rest[:left], np.repeat(rest[left - 1 : left], CHUNK - left, 0)]),
        "n": left,
        "cube": data.body(arm.task.cube_body).xpos.copy(),
        "cube_yaw": float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))),
        "goal": data.body(goal).xpos.copy() if goal else np.full(3, np.nan),
        "site": data.site_xpos[site].copy(),
        "rot": data.site_xmat[site].reshape(3, 3).copy(),
        "qpos": data.qpos.copy(),
    }


def episode(arm: SimulatedArm, seed: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Moments of one disturbed episode; none where it failed."""
    notes: list[dict[str, Any]] = []
    seen = arm.reset(seed, look=False)
    detours = int(rng.integers(1, 3)) if rng.random() < DETOURS else 0
    for detour in range(detours + 1):
        actions, last, noise = plan(arm), detour == detours, np.zeros(6)
        for step in range(len(actions) if last else int(rng.integers(1, 13))):
            if step % 3 == 0:
                noise = rng.normal(0, disturbance_degrees(step), 6) * [1, 1, 1, 1, 1, 0]
            notes.append(note(arm, seen.state, actions[step:]))
            done = arm.step(actions[step] + noise, look=False)
            seen = done.observation
            if done.success:
                return notes
        if not last:  # carried away, upwards rather than down
            away = seen.state + rng.normal(0, 1, 6) * [15, 12, 12, 12, 15, 10] - [0, 8, 0, 0, 0, 0]
            away[5] = rng.choice([seen.state[5], rng.uniform(0, 40)])
            for _ in range(int(rng.integers(2, 5))):
                seen = arm.step(away, look=False).observation
    return []


def record(task: str, episodes: int, frames: int, first_seed: int) -> dict[str, np.ndarray]:
    """Columns of all kept frames, and the task's text."""
    rng, rows, found, seed = np.random.default_rng(first_seed), [], 0, first_seed
    with FilmedLater(task, SimulatorSettings(), render=True) as arm:
        while found < episodes:
            notes, seed = episode(arm, seed, rng), seed + 1
            if not notes:
                continue
            for index in rng.choice(len(notes), min(frames, len(notes)), replace=False):
                rows.append({**notes[index], **arm.look_back(notes[index]["qpos"]), "episode": found})
            found += 1
        text = arm.task.text
    names = rows[0].keys() - {"qpos"}
    return {name: np.stack([np.asarray(row[name]) for row in rows]) for name in sorted(names)} | {
        "text": np.array(text)
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("task")
    parser.add_argument("--episodes", type=int, required=True)
    parser.add_argument("--frames", type=int, required=True)
    parser.add_argument("--first-seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    np.savez(given.out, **record(given.task, given.episodes, given.frames, given.first_seed))
