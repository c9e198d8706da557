"""What judging costs beside training: an evaluation of some episodes, and one local epoch over the same.

    python benchmarks/evaluate.py --geometry tiny --episodes 20 --json evaluate.json

Both read the same kept features in one process, in turn, `--repeats` times; figures are medians of CPU time (of wall
time on a GPU), the first turn left out. An epoch is a client's round with `local_epochs = 1`; an evaluation is the
server's: policy loss at `--times` stratified times and the action error of the predicted chunk, on the frames that are
judged by default (`evaluation`, see `evaluation.every_frames`) and on every frame (`every frame`).
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train import CAMERAS, SHAPES, options, prepare

from zk0.session import EvaluationSettings


def main() -> None:
    """Measure both in turn and print a table."""
    arguments = parsed()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="zk0-evaluate-") as folder:
        SHAPES[arguments.geometry] = (*SHAPES[arguments.geometry][:1], arguments.episodes, arguments.length)
        prepare(Path(folder), arguments)
        result = compared(measured(Path(folder), arguments), arguments)
    sys.stdout.write(table(result) + "\n")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = options(__doc__)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--length", type=int, help="frames of an episode; unset: 40 (tiny), 1 (full)")
    parser.add_argument("--batch", type=int, help="frames; unset: 32 (tiny), 4 (full)")
    parser.add_argument("--judge-batch", type=int, help="frames judged at once; unset: as evaluation.batch_size")
    parser.add_argument("--times", type=int, default=8, help="flow-matching times a frame")
    parser.add_argument("--features", choices=["embeddings", "kv"], default="embeddings")
    parser.add_argument("--repeats", type=int, help="that are timed; unset: 5 (tiny), 2 (full)")
    found = parser.parse_args()
    full = found.geometry == "full"
    found.length = found.length or (1 if full else 40)
    found.batch = found.batch or (4 if full else 32)
    found.judge_batch = found.judge_batch or (4 if full else EvaluationSettings().batch_size)
    found.repeats = found.repeats or (2 if full else 5)
    return found


def measured(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both, turn after turn."""
    import torch

    from zk0.records import PolicyRecipe
    from zk0.robot.dataset import EpisodeReader
    from zk0.robot.policy import build_policy, make_processors
    from zk0.robot.statistics import measure
    from zk0.session import TrainingSettings
    from zk0.training.client import feature_cache
    from zk0.training.device import pick_device
    from zk0.training.evaluate import score
    from zk0.training.examples import CachedExamples
    from zk0.training.fit import fit

    torch.set_num_threads(arguments.threads)
    path = "tiny" if arguments.geometry == "tiny" else str(folder / "base")
    recipe = PolicyRecipe(path=path, cameras=CAMERAS, joints=6, seed=1)
    device = pick_device(arguments.device)
    policy = build_policy(recipe, folder, device)
    episodes = tuple(range(arguments.episodes))
    statistics_ = measure(folder / "set", episodes)
    training = TrainingSettings(local_epochs=1, batch_size=arguments.batch, features=arguments.features)
    cache = feature_cache(folder / "cache", policy, recipe, training)
    examples = CachedExamples(
        EpisodeReader(folder / "set"), episodes, policy, make_processors(policy, statistics_)[0], cache
    )
    plan = plan_for(recipe, training)
    how = {"dataset": "x", "seed": 1, "times": arguments.times, "batch_size": arguments.judge_batch}

    def judge(every: int) -> None:
        found = score(policy, examples, statistics_, every_frames=every, **how)
        errors["every frame" if every == 1 else "evaluation"] = (found.policy_loss, found.policy_loss_se)

    errors: dict[str, tuple[float, float | None]] = {}
    ways: dict[str, Callable[[], Any]] = {
        "epoch": lambda: fit(policy, examples, plan),
        "evaluation": lambda: judge(EvaluationSettings().every_frames),
        "every frame": lambda: judge(1),
    }
    seconds: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(arguments.repeats + 1):
        for way, work in ways.items():
            began = time.perf_counter(), time.process_time()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[way].append({"wall": time.perf_counter() - began[0], "cpu": time.process_time() - began[1]})
    parameters = sum(p.numel() for p in policy.parameters())
    return {"losses": errors, "ways": seconds, "frames": examples.frames, "parameters": parameters, "device": device}


def plan_for(recipe: Any, training: Any) -> Any:
    """A round of one client."""
    from zk0.session import ContractSettings, DataSettings, RoundPlan, SchedulerSettings, SimulatorSettings, Terms

    terms = Terms(
        session="bench", seed=42, contract=ContractSettings(), data=DataSettings(), simulator=SimulatorSettings()
    )
    return RoundPlan(
        terms=terms, round=1, client="bench", recipe=recipe, global_digest="", statistics=None, lr=1e-4, mu=0.01,
        training=training, scheduler=SchedulerSettings(),
    )  # fmt: skip


def compared(found: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians after the first turn, and their ratio."""
    clock = "wall" if found["device"] == "cuda" else "cpu"
    ways = {
        way: {name: statistics.median(turn[name] for turn in turns[1:]) for name in ("wall", "cpu")}
        for way, turns in found["ways"].items()
    }
    ratios = {f"evaluate: {way} / epoch": ways[way][clock] / ways["epoch"][clock] for way in list(ways)[1:]}
    names = ("geometry", "episodes", "length", "batch", "judge_batch", "times", "features", "repeats", "threads")
    settings = {name: getattr(arguments, name) for name in names}
    return found | {"ways": ways, "ratio_of": clock, "ratios": ratios, "settings": settings}


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    s = result["settings"]
    head = (
        f"{result['parameters']:,} parameters, {s['episodes']} episodes, {result['frames']} frames, batch {s['batch']} "
        f"(judged {s['judge_batch']}), {s['times']} times, {s['features']}, {result['device']}, {s['threads']} thread"
    )
    rows = [
        f"| {way} | {row['wall']:.2f} | {row['cpu']:.2f} | {row['cpu'] / result['frames'] * 1e3:.1f} |"
        for way, row in result["ways"].items()
    ]
    heads = ["| | s | CPU s | CPU ms/frame |", "|---|---:|---:|---:|"]
    said = [f"{name.removeprefix('evaluate: ')}: {ratio:.2f}" for name, ratio in result["ratios"].items()]
    losses = [
        f"policy loss, {way}: {loss:.4f}, standard error {se:.4f}" for way, (loss, se) in result["losses"].items()
    ]
    return "\n".join([head, *heads, *rows, *said, *losses])


if __name__ == "__main__":
    main()
