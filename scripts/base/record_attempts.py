"""Record attempts of a policy, each frame with what the scripted expert would do there (DAgger, arXiv 1011.0686).

    python scripts/base/record_attempts.py base --out attempts --files 500
    python scripts/base/record_attempts.py @work/newest --out attempts --files 500 --start 500

Of the attempts, 65 % are the policy's, 20 % the expert's with noise on its actions, and in 15 % they take turns. So the
frames show the states that the policy gets into, and the actions lead out of them. A frame is rendered where the policy
would be asked, every five steps. Colors are drawn anew for each attempt (`training_colors.toml`).

With `@FILE`, the policy is the folder that this file names when a file of frames begins: `scripts/base/train.py` names
its newest one there. The command can be stopped at any time; started again, it records the files that are missing.
"""

import argparse
import os
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zk0.evaluation.closed_loop import PolicyActor
from zk0.evaluation.saved_rollout import map_cameras
from zk0.policy.saved_policy import load_saved_policy
from zk0.settings.dataset_settings import SimulatorSettings
from zk0.simulator.arm import Observation, SimulatedArm
from zk0.simulator.expert import ScriptedExpert
from zk0.simulator.rollout import ActFunction
from zk0.simulator.tasks import COLORS, SimulatedTask, find_task
from zk0.storage.atomic import atomic_path

CHUNK, EXECUTED = 10, 5
"""Actions of the expert that a frame has, and those that are executed before the next frame."""
ATTEMPTS = 16
"""Of one file."""
AT_A_TIME = 4
MOTIONS = ("lift", "place", "stack", "stack", "place")
"""Of successive files."""
MOST_STEPS = {"lift": 45, "place": 70, "stack": 70}
ACTORS = {"policy": 0.65, "expert": 0.2, "both": 0.15}
DETOURS = 0.08
"""Probability that the arm is moved away instead of executing the expert's chunk."""
FIRST_SEED = 1_600_000_000
"""Above all seeds that sessions draw recordings and evaluations from."""
REACH_M = 0.40
SIMULATOR = SimulatorSettings(spawn_radius_m=(0.085, 0.145), spawn_half_angle_degrees=28.0)
"""Scenes vary a little more than those of sessions."""


class RecoloredArm(SimulatedArm):
    """An arm whose objects get other colors for each attempt; opening an arm takes longer than an attempt."""

    def begin(self, seed: int, task: SimulatedTask) -> None:
        """Start the attempt of this seed with the colors of the task."""
        from so101_nexus.constants import COLOR_MAP

        self.reset(seed, render=False)
        self.shown, (model, _) = task, self.physics
        for body, color in ((self.task.cube_body, task.cube), (self.task.goal_body, task.onto)):
            if body and color:
                model.geom_rgba[model.body(body).geomadr[0]] = COLOR_MAP[color]

    def observe(self) -> Observation:
        """Render the present scene."""
        import mujoco

        mujoco.mj_forward(*self.physics)
        seen = self._observation(self._environment()._get_obs())
        return Observation(state=seen.state, images=seen.images, task=self.shown.text)


@dataclass(eq=False)
class Attempt:
    """One attempt in progress."""

    arm: RecoloredArm
    expert: ScriptedExpert
    seed: int
    actor: str
    noise: float
    """Standard deviation of the noise on the expert's actions, in degrees."""
    steps: int = 0
    success: bool = False

    @property
    def is_over(self) -> bool:
        cube = self.arm.physics[1].body(self.arm.task.cube_body).xpos
        lost = np.hypot(*cube[:2]) > REACH_M or cube[2] < -0.02
        return bool(self.success or lost or self.steps >= MOST_STEPS[self.arm.task.motion])

    def execute(self, actions: Sequence[np.ndarray]) -> None:
        for action in actions:
            if not self.is_over:
                self.success, self.steps = self.arm.step(action, render=False).success, self.steps + 1

    def frame(self, observation: Observation, chunk: np.ndarray) -> dict[str, Any]:
        """One row: what the policy sees, what the expert would do, and where everything is."""
        _, data = self.arm.physics
        cube, goal = self.arm.task.cube_body, self.arm.task.goal_body
        tool, stacked = self.expert.tool(), self.arm.task.motion == "stack"
        return {
            **observation.images,
            "state": observation.state,
            "chunk": chunk,
            "task": self.arm.shown.name,
            "attempt": np.int64(self.seed),
            "actor": self.actor,
            "cube": data.body(cube).xpos.copy(),
            "cube_yaw": self.expert.pose(cube).yaw,
            "goal": data.body(goal).xpos.copy() if goal else np.full(3, np.nan),
            "goal_yaw": self.expert.pose(goal).yaw if goal and stacked else np.nan,
            "site": tool.position,
            "rot": tool.rotation,
        }


def allowed_tasks(file: Path, motion: str) -> list[str]:
    """The tasks of this motion whose colors may be drawn."""
    drawn = tomllib.loads(file.read_text(encoding="utf-8"))
    cubes = product(drawn["cubes"], [""] if motion == "lift" else COLORS)
    names = ["-".join(filter(None, (motion, cube, onto))) for cube, onto in cubes if cube != onto]
    return [name for name in names if name not in drawn["excluded"]]


@cache
def open_arms(motion: str) -> tuple[tuple[RecoloredArm, ScriptedExpert], ...]:
    """Open arms of one motion; they stay open."""
    name = {"lift": "lift-green", "place": "place-green-red", "stack": "stack-green-red"}[motion]
    arms = [RecoloredArm(name, SIMULATOR, render=True).__enter__() for _ in range(AT_A_TIME)]
    return tuple((arm, ScriptedExpert(arm)) for arm in arms)


def record_file(file: Path, number: int, colors: Path, act: ActFunction) -> str:
    """Record one file of attempts of one motion; return how many succeeded."""
    rng, motion = np.random.default_rng(FIRST_SEED + number), MOTIONS[number % len(MOTIONS)]
    tasks, free = allowed_tasks(colors, motion), list(open_arms(motion))
    seeds = iter(range(FIRST_SEED + number * ATTEMPTS, FIRST_SEED + (number + 1) * ATTEMPTS))
    running: list[Attempt] = []
    rows: list[dict[str, Any]] = []
    won: list[bool] = []
    while True:
        while free and (seed := next(seeds, None)) is not None:
            running.append(_begin(*free.pop(), seed, str(rng.choice(tasks)), rng))
        if not running:
            break
        rows += _next_chunks(running, act, rng)
        for attempt in [a for a in running if a.is_over]:
            running.remove(attempt)
            free.append((attempt.arm, attempt.expert))
            if attempt.actor == "policy":
                won.append(attempt.success)
    columns = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in sorted(rows[0])}
    with atomic_path(file, keep_suffix=True) as temporary:
        np.savez(temporary, **columns)
    return f"{motion}, {len(rows)} frames, the policy succeeded in {sum(won)} of {len(won)} attempts"


def _begin(arm: RecoloredArm, expert: ScriptedExpert, seed: int, task: str, rng: np.random.Generator) -> Attempt:
    """Start an attempt; the expert makes up to four steps, so that frames are at all phases of a chunk."""
    arm.begin(seed, find_task(task))
    actor = str(rng.choice(list(ACTORS), p=list(ACTORS.values())))
    attempt = Attempt(arm, expert, seed, actor, noise=abs(rng.normal(0, 1)))
    attempt.execute(expert.chunk(int(rng.integers(0, EXECUTED))))
    return attempt


def _next_chunks(running: Sequence[Attempt], act: ActFunction, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Let all attempts go on for one chunk; return the frames before it."""
    seen = [attempt.arm.observe() for attempt in running]
    expected = [attempt.expert.chunk(CHUNK) for attempt in running]
    rows = [a.frame(o, chunk) for a, o, chunk in zip(running, seen, expected, strict=True)]
    asked = [k for k, a in enumerate(running) if a.actor == "policy" or (a.actor == "both" and rng.random() < 0.5)]
    answers = act([running[k].seed for k in asked], [[seen[k]] for k in asked]) if asked else []
    chosen = dict(zip(asked, answers, strict=True))
    for k, attempt in enumerate(running):
        if k in chosen:
            attempt.execute(chosen[k])
        elif rng.random() < DETOURS:
            attempt.execute([_away(seen[k].state, rng)] * int(rng.integers(1, 4)))
        else:
            attempt.execute(expected[k][:EXECUTED] + rng.normal(0, attempt.noise, 6) * [1, 1, 1, 1, 2, 0])
    return rows


def _away(state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An action that leads away, and rather up than down."""
    away = state + rng.normal(0, 1, 6) * [15, 12, 12, 12, 25, 10] - [0, 8, 0, 0, 0, 0]
    away[5] = rng.choice([state[5], rng.uniform(0, 40)])
    return np.asarray(away)


def named_policy(given: str) -> str:
    """The policy, or the one that `@FILE` names; the included one while there is no such file."""
    if not given.startswith("@"):
        return given
    file = Path(given[1:])
    return file.read_text(encoding="utf-8").strip() if file.is_file() else "base"


def main() -> None:
    """Record the files that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", help="a policy folder, base, or @FILE")
    parser.add_argument("--colors", type=Path, default=Path(__file__).with_name("training_colors.toml"))
    parser.add_argument("--files", type=int, required=True, help=f"of {ATTEMPTS} attempts each")
    parser.add_argument("--start", type=int, default=0, help="number of the first file")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    loaded, actor = "", None
    for number in range(arguments.start, arguments.start + arguments.files):
        file = arguments.out / f"{number:05d}.npz"
        if file.is_file():
            continue
        if (name := named_policy(arguments.policy)) != loaded or actor is None:
            saved, loaded = load_saved_policy(name), name
            actor = PolicyActor(saved.policy, saved.preprocessor, saved.postprocessor, map_cameras(saved, {}, name))
        told = record_file(file, number, arguments.colors, actor.act_function(EXECUTED))
        sys.stdout.write(f"{file.name}: {told} ({name})\n")
        sys.stdout.flush()
    os._exit(0)  # the arms' OpenGL contexts cannot be closed in the order in which Python would close them


if __name__ == "__main__":
    main()
