"""The cost of evaluation beside training: an evaluation of some episodes, and one local epoch on the same frames.

    python benchmarks/evaluate.py --geometry tiny --episodes 20 --json evaluate.json

Both read the same cached features in one process, alternating, `--repeats` times; the results are medians of CPU time
(of wall time on a GPU), without the first repetition. An epoch is a client's round with `local_epochs = 1`. An
evaluation is the server's: policy loss at `--times` stratified times, and the action error of the predicted chunk; once
on the frames that the default setting `evaluation.every_frames` chooses (`evaluation`), once on all (`every frame`).
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

from zk0.settings.evaluation_settings import EvaluationSettings


def main() -> None:
    """Measure both alternately and print a table."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="zk0-evaluate-") as folder:
        SHAPES[arguments.geometry] = (*SHAPES[arguments.geometry][:1], arguments.episodes, arguments.length)
        prepare(Path(folder), arguments)
        result = with_ratios(run(Path(folder), arguments), arguments)
    sys.stdout.write(table(result) + "\n")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """The command line's arguments, with defaults by geometry."""
    parser = options(__doc__)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--length", type=int, help="frames per episode; unset: 40 (tiny), 1 (full)")
    parser.add_argument("--batch", type=int, help="frames per training step; unset: 32 (tiny), 4 (full)")
    parser.add_argument("--evaluation-batch", type=int, help="frames evaluated at once; unset: 32 (tiny), 4 (full)")
    parser.add_argument("--times", type=int, default=8, help="flow-matching times per frame")
    parser.add_argument("--features", choices=["embeddings", "kv"], default="embeddings")
    parser.add_argument("--repeats", type=int, help="timed repetitions; unset: 5 (tiny), 2 (full)")
    arguments = parser.parse_args()
    full = arguments.geometry == "full"
    arguments.length = arguments.length or (1 if full else 40)
    arguments.batch = arguments.batch or (4 if full else 32)
    arguments.evaluation_batch = arguments.evaluation_batch or (4 if full else EvaluationSettings().batch_size)
    arguments.repeats = arguments.repeats or (2 if full else 5)
    return arguments


def run(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Wall and CPU seconds of each repetition of training and evaluation, and the losses."""
    import torch

    from zk0.data.episode_reader import EpisodeReader
    from zk0.data.statistics import measure_statistics
    from zk0.evaluation.scores import score_policy
    from zk0.policy.build import build_policy
    from zk0.policy.processors import make_processors
    from zk0.records import PolicyRecipe
    from zk0.settings.training_settings import LocalTrainingSettings
    from zk0.training.cached_examples import CachedExamples
    from zk0.training.cached_policy import open_feature_cache
    from zk0.training.device import pick_device
    from zk0.training.fit import fit

    torch.set_num_threads(arguments.threads)
    path = "tiny" if arguments.geometry == "tiny" else str(folder / "base")
    recipe = PolicyRecipe(path=path, cameras=CAMERAS, joints=6, seed=1)
    device = pick_device(arguments.device)
    policy = build_policy(recipe, folder, device)
    episodes = tuple(range(arguments.episodes))
    statistics_ = measure_statistics(folder / "set", episodes)
    training = LocalTrainingSettings(local_epochs=1, batch_size=arguments.batch, features=arguments.features)
    cache = open_feature_cache(folder / "cache", policy, recipe, training)
    examples = CachedExamples(
        EpisodeReader(folder / "set"), episodes, policy, make_processors(policy, statistics_)[0], cache
    )
    plan = round_plan(recipe, training)
    how = {"dataset": "x", "seed": 1, "times": arguments.times, "batch_size": arguments.evaluation_batch}

    def evaluate(every: int) -> None:
        score = score_policy(policy, examples, statistics_, every_frames=every, **how)
        losses["every frame" if every == 1 else "evaluation"] = (score.policy_loss, score.policy_loss_se)

    losses: dict[str, tuple[float, float | None]] = {}
    runs: dict[str, Callable[[], Any]] = {
        "epoch": lambda: fit(policy, examples, plan),
        "evaluation": lambda: evaluate(EvaluationSettings().every_frames),
        "every frame": lambda: evaluate(1),
    }
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for _ in range(arguments.repeats + 1):
        for name, work in runs.items():
            started = time.perf_counter(), time.process_time()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append({"wall": time.perf_counter() - started[0], "cpu": time.process_time() - started[1]})
    parameters = sum(p.numel() for p in policy.parameters())
    return {"losses": losses, "seconds": seconds, "frames": examples.frames, "parameters": parameters, "device": device}


def round_plan(recipe: Any, training: Any) -> Any:
    """The plan of one client's round."""
    from zk0.settings.dataset_settings import ContractSettings, DataSettings, SimulatorSettings
    from zk0.settings.plans import RoundPlan, SessionTerms
    from zk0.settings.training_settings import SchedulerSettings

    terms = SessionTerms(
        session="bench", seed=42, contract=ContractSettings(), data=DataSettings(), simulator=SimulatorSettings()
    )
    return RoundPlan(
        terms=terms, round=1, client="bench", recipe=recipe, global_digest="", statistics=None, lr=1e-4, mu=0.01,
        training=training, scheduler=SchedulerSettings(),
    )  # fmt: skip


def with_ratios(result: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians without the first repetition, and their ratios, whose names the nightly comparison reads."""
    clock = "wall" if result["device"] == "cuda" else "cpu"
    medians = {
        name: {c: statistics.median(seconds[c] for seconds in repetitions[1:]) for c in ("wall", "cpu")}
        for name, repetitions in result["seconds"].items()
    }
    epoch = medians["epoch"][clock]
    ratios = {f"evaluate: {name} / epoch": medians[name][clock] / epoch for name in list(medians)[1:]}
    names = ("geometry", "episodes", "length", "batch", "evaluation_batch", "times", "features", "repeats", "threads")
    settings = {name: getattr(arguments, name) for name in names}
    return result | {"seconds": medians, "ratio_of": clock, "ratios": ratios, "settings": settings}


def table(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    s = result["settings"]
    head = (
        f"{result['parameters']:,} parameters, {s['episodes']} episodes, {result['frames']} frames, batch {s['batch']} "
        f"(evaluation {s['evaluation_batch']}), {s['times']} times, {s['features']}, {result['device']}, "
        f"{s['threads']} thread(s)"
    )
    rows = [
        f"| {name} | {row['wall']:.2f} | {row['cpu']:.2f} | {row['cpu'] / result['frames'] * 1e3:.1f} |"
        for name, row in result["seconds"].items()
    ]
    heads = ["| | s | CPU s | CPU ms/frame |", "|---|---:|---:|---:|"]
    ratios = [f"{name.removeprefix('evaluate: ')}: {ratio:.2f}" for name, ratio in result["ratios"].items()]
    losses = [
        f"policy loss, {name}: {loss:.4f}, standard error {se:.4f}" for name, (loss, se) in result["losses"].items()
    ]
    return "\n".join([head, *heads, *rows, *ratios, *losses])


if __name__ == "__main__":
    main()
