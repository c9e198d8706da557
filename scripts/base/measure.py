"""Measure a policy by attempts in closed loop, task by task.

    python scripts/base/measure.py FOLDER --out attempts.jsonl --seeds 7000-7019 lift-green stack-green-red

A line of the output has a task, the number of steps allowed, the seeds, and those of the successful attempts. Tasks
that the output already has are not repeated. Seeds 7000-7999 are for choosing among policies (validation), seeds
9000-9999 for the numbers that are published.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from zk0.evaluation.closed_loop import PolicyActor, run_attempts
from zk0.evaluation.saved_rollout import map_cameras
from zk0.policy.saved_policy import load_saved_policy
from zk0.settings.dataset_settings import SimulatorSettings
from zk0.settings.evaluation_settings import RolloutSettings
from zk0.simulator.tasks import find_task
from zk0.stats.intervals import wilson_interval

STEPS = {"lift": 45, "place": 70, "stack": 70}
"""Default limit of an attempt by motion."""


def main() -> None:
    """Measure the tasks that are missing, and print the success rate of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", help="a policy folder, or base")
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--seeds", default="7000-7019", help="first-last")
    parser.add_argument("--max-steps", type=int, help=f"limit of an attempt; default by motion: {STEPS}")
    parser.add_argument("--replan-steps", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    first, last = map(int, arguments.seeds.split("-"))
    lines = arguments.out.read_text(encoding="utf-8").splitlines() if arguments.out.is_file() else []
    done = {json.loads(line)["task"]: json.loads(line) for line in lines}
    saved = load_saved_policy(arguments.policy)
    actor = PolicyActor(saved.policy, saved.preprocessor, saved.postprocessor, map_cameras(saved, {}, arguments.policy))
    for task in arguments.tasks:
        if task not in done:
            steps = arguments.max_steps or STEPS[find_task(task).motion]
            settings = RolloutSettings(
                seeds=tuple(range(first, last + 1)), max_steps=steps, replan_steps=arguments.replan_steps
            )
            attempts = run_attempts(actor, task, SimulatorSettings(), settings, rendered=0)
            succeeded = [attempt.seed for attempt in attempts if attempt.success]
            done[task] = {"task": task, "max_steps": steps, "seeds": arguments.seeds, "succeeded": succeeded}
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[task]) + "\n")
        count, successes = last - first + 1, len(done[task]["succeeded"])
        low, high = wilson_interval(successes, count)
        sys.stdout.write(f"{task}: {successes} of {count} ({low:.0%} to {high:.0%})\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
