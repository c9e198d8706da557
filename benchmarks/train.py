"""A training step of SmolVLA or ACT: LeRobot's own and zk0's variants of it, on the same data.

    python benchmarks/train.py --geometry full --batch 2 --steps 4 --json train.json
    python benchmarks/train.py --policy act --geometry full

Each variant runs in a process of its own, which is forked from one that has imported LeRobot. `lerobot` is
LeRobotDataset, DataLoader (no workers), processors, optimizer preset and `update_policy`; `off` is zk0 without the
feature cache; `embeddings` and `kv` are zk0 with it; `lora` is `embeddings` with LoRA, `deterministic` is `embeddings`
with deterministic kernels, and `compiled` (only if it is named) is `kv` with a compiled action expert. ACT has the
first two only. Times are medians over steps after the first. The ratio is of CPU time on a CPU (which varies less on a
shared machine) and of wall time on a GPU. The time to compute the features is measured separately; `epochs to break
even` is the number of passes over the frames after which the cache has saved that time. Peak memory is that of the
steps, including the policy and the features read. With `--profile` a second table shows what the device works on in a
step; benchmarks/gpu.sh asks for it.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gpu.step_profile import KINDS, PROFILED_STEPS, StepProfile, step_parts

ZK0_VARIANTS: dict[str, dict[str, Any]] = {
    "off": {"features": "off"},
    "embeddings": {"features": "embeddings"},
    "kv": {"features": "kv"},
    "lora": {"features": "embeddings", "scope": "lora"},
    "deterministic": {"features": "embeddings", "deterministic": True},
    "compiled": {"features": "kv", "compile": True},
}
"""Settings of `training` by variant."""
VARIANTS = ("lerobot", *ZK0_VARIANTS)
USUAL = tuple(name for name in VARIANTS if name != "compiled")
"""On a CPU, compiling takes minutes."""
OF_ACT = ("lerobot", "off")
"""ACT has no frozen part whose output could be stored, and no action expert."""
CAMERAS = ("overhead", "wrist")
STEPS_UNREAD = 2
"""On a GPU zk0 reports a step when two more have been started."""
VLM = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
SHAPES = {"tiny": ((96, 96), 3, 40), "full": ((480, 640), 1, 6)}
"""(height, width) of a frame, number of episodes, frames per episode; by geometry."""
IMPORTS = [
    "accelerate",
    "lerobot.scripts.lerobot_train",
    "zk0.policy.build",
    "zk0.policy.plain.plain_kind",
    "zk0.training.fit",
]
"""What takes long to import, in the process that the variants are forked from."""


def main() -> None:
    """Run every variant and print a table."""
    arguments = parse_arguments()
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(arguments.threads))
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="zk0-train-") as folder:
        arguments.folder = folder
        run_in_own_process("prepare", arguments)
        variants: dict[str, Any] = {}
        for variant in arguments.variants.split(","):
            variants[variant] = run_in_own_process(variant, arguments)
            tables = write_results(variants, arguments)  # each time: the next variant may take too long
    sys.stdout.write(tables)


def write_results(variants: dict[str, Any], arguments: argparse.Namespace) -> str:
    """Write the results so far to the files that were asked for; return the tables."""
    settings = ("policy", "geometry", "batch", "steps", "threads", "workers", "decoder")
    result = with_ratios(variants) | {
        "settings": {k: getattr(arguments, k) for k in settings},
        "software": {package: version(package) for package in ("torch", "lerobot")},
    }
    tables = "\n\n".join([table(result), *([parts_table(result)] if arguments.profile else [])]) + "\n"
    if arguments.markdown:
        Path(arguments.markdown).write_text(tables, encoding="utf-8")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return tables


def options(description: str | None) -> argparse.ArgumentParser:
    """Command-line options that the benchmarks of training and evaluation share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--geometry", choices=list(SHAPES), default="tiny", help="full: 450M parameters, random weights"
    )
    parser.add_argument("--vlm", default=VLM, help="name or folder of the full model's configuration and tokenizer")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="cuda: with bf16 autocast")
    parser.add_argument("--json", metavar="FILE", help="write the results to this file too")
    parser.add_argument("--folder", help="folder for temporary data and features; unset: the system's")
    return parser


def parse_arguments() -> argparse.Namespace:
    """The command line's arguments, with defaults by geometry."""
    parser = options(__doc__)
    parser.add_argument("--policy", choices=["smolvla", "act"], default="smolvla", help="what is trained")
    parser.add_argument("--batch", type=int, help="frames per step; unset: 8 (tiny), 2 (full)")
    parser.add_argument("--steps", type=int, help="timed steps; unset: 20 (tiny), 4 (full)")
    parser.add_argument("--variants", help="which to run, with commas; lerobot comes first; unset: all but compiled")
    parser.add_argument("--frames", type=int, help="frames per episode; unset: 40 (tiny), 6 (full)")
    parser.add_argument("--workers", type=int, default=0, help="processes of LeRobot's loader; lerobot-train has 4")
    parser.add_argument(
        "--decoder",
        choices=["pyav", "default"],
        default="pyav",
        help="how `lerobot` decodes; default: as lerobot-train",
    )
    parser.add_argument("--profile", action="store_true", help="also show what the device works on in a step")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables to this file too")
    arguments = parser.parse_args()
    usual, known = (OF_ACT, OF_ACT) if arguments.policy == "act" else (USUAL, VARIANTS)
    arguments.variants = arguments.variants or ",".join(usual)
    chosen = arguments.variants.split(",")
    if chosen[0] != "lerobot" or not set(chosen) <= set(known):
        parser.error(f"--variants: {arguments.variants}; expected lerobot and some of {', '.join(known[1:])}")
    arguments.batch = arguments.batch or {"tiny": 8, "full": 2}[arguments.geometry]
    arguments.steps = arguments.steps or {"tiny": 20, "full": 4}[arguments.geometry]
    return arguments


def run_in_own_process(variant: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The results of one variant, run in a process of its own; its output is shown only if it fails."""
    result, log = Path(arguments.folder) / f"{variant}.json", Path(arguments.folder) / f"{variant}.log"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    process = context.Process(target=store_results, args=(variant, arguments, result, log))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{variant} failed:\n{log.read_text()[-3000:]}")
    return dict(json.loads(result.read_text()))


def store_results(variant: str, arguments: argparse.Namespace, result: Path, log: Path) -> None:
    """Run a variant in this process, and write its results and its output to files."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    result.write_text(json.dumps(run_variant(variant, arguments)), encoding="utf-8")


def run_variant(variant: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The results of one variant, run in this process."""
    folder = Path(arguments.folder)
    if variant == "prepare":
        return prepare(folder, arguments)
    import torch

    from zk0.data.statistics import measure_statistics
    from zk0.policy.build import build_policy
    from zk0.records import PolicyRecipe
    from zk0.training.device import pick_device

    torch.set_num_threads(arguments.threads)
    tiny = {"smolvla": "tiny", "act": "tiny-act"}[arguments.policy]
    path = tiny if arguments.geometry == "tiny" else str(folder / "base")
    recipe = PolicyRecipe(path=path, cameras=CAMERAS, joints=6, seed=1)
    device = pick_device(arguments.device)
    policy = build_policy(recipe, folder, device)
    episodes = tuple(range(SHAPES[arguments.geometry][1]))
    moments = measure_statistics(folder / "set", episodes)
    if variant == "lerobot":
        results = train_with_lerobot(policy, moments, arguments)
    else:
        results = train_with_zk0(policy, recipe, moments, episodes, variant, arguments)
    return results | {
        "parameters": sum(p.numel() for p in policy.parameters()),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else memory_kib("VmHWM") / 1024,
    }


def prepare(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the dataset and, for the full geometry, a policy with random weights."""
    import numpy as np

    from zk0.data.dataset_writer import RecordedFrame, write_dataset
    from zk0.settings.dataset_settings import SO101_JOINTS

    (height, width), episodes, frames = SHAPES[arguments.geometry]
    frames = getattr(arguments, "frames", None) or frames
    rng = np.random.default_rng(0)

    def episode() -> Iterator[RecordedFrame]:
        scene = rng.integers(0, 120, (height // 8, width // 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        for t in range(frames):
            images = {c: np.roll(scene, 3 * t + 20 * i, axis=1) for i, c in enumerate(CAMERAS)}
            state = (40 * np.sin(t / 6 + np.arange(6))).astype(np.float32)
            yield RecordedFrame(state, state + 1, images, "Lift the red cube.")

    write_dataset(
        folder / "set",
        (list(episode()) for _ in range(episodes)),
        fps=30,
        joints=SO101_JOINTS,
        robot_type="so101_follower",
    )
    if arguments.geometry == "full" and getattr(arguments, "policy", "smolvla") == "act":
        write_random_act(folder / "base", height, width)
    elif arguments.geometry == "full":
        write_random_policy(folder / "base", "camera1", 256, vlm_model_name=arguments.vlm)
    return {}


def write_random_act(folder: Path, height: int, width: int) -> None:
    """Write a folder of ACT with LeRobot's default sizes and random weights, for two cameras."""
    import torch
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    images = {f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, height, width)) for c in CAMERAS}
    state, action = PolicyFeature(FeatureType.STATE, (6,)), PolicyFeature(FeatureType.ACTION, (6,))
    torch.manual_seed(0)
    config = ACTConfig(
        device="cpu",
        input_features={"observation.state": state, **images},
        output_features={"action": action},
        pretrained_backbone_weights=None,
        push_to_hub=False,
    )
    ACTPolicy(config).save_pretrained(folder)


def write_random_policy(folder: Path, camera: str, side: int, **geometry: Any) -> str:
    """Write a policy folder with random weights; `geometry` replaces fields of smolvla_base's configuration."""
    import torch
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    inputs = {f"observation.images.{camera}": PolicyFeature(FeatureType.VISUAL, (3, side, side))}
    torch.manual_seed(0)
    config = SmolVLAConfig(device="cpu", input_features=inputs, **{"push_to_hub": False} | geometry)
    SmolVLAPolicy(config).save_pretrained(folder)
    return str(folder)


def train_with_lerobot(policy: Any, moments: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train as `lerobot-train` does, with its own function for a step."""
    import torch
    from accelerate import Accelerator
    from lerobot.datasets import LeRobotDataset
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.scripts.lerobot_train import update_policy

    from zk0.policy.processors import lerobot_statistics

    on_gpu = policy.config.device == "cuda"
    deltas = {"action": [i / 30 for i in range(policy.config.chunk_size)]}
    data = LeRobotDataset(
        "local/set",
        root=Path(arguments.folder) / "set",
        delta_timestamps=deltas,
        video_backend="pyav" if arguments.decoder == "pyav" else None,
    )
    pre, _ = make_pre_post_processors(policy.config, dataset_stats=lerobot_statistics(moments, policy.config))
    preset = policy.config.get_optimizer_preset()
    optimizer = preset.build(policy.get_optim_params())
    accelerator = Accelerator(cpu=not on_gpu, mixed_precision="bf16" if on_gpu else "no")
    workers = {"prefetch_factor": 4, "persistent_workers": True} if arguments.workers else {}
    loader = torch.utils.data.DataLoader(
        data, arguments.batch, shuffle=True, num_workers=arguments.workers, pin_memory=on_gpu, **workers
    )
    torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = on_gpu
    policy, optimizer, loader = accelerator.prepare(policy, optimizer, loader)

    def batches() -> Iterator[Any]:
        while True:
            yield from loader

    endless, metrics = batches(), SimpleNamespace(update_metrics=lambda _: None)
    clock = StepClock(arguments, policy.config.device)
    clock.begin()
    for _ in range(clock.steps):
        update_policy(metrics, policy, pre(next(endless)), optimizer, preset.grad_clip_norm, accelerator)
        clock.tick()
    return clock.figures()


def train_with_zk0(
    policy: Any, recipe: Any, moments: Any, episodes: tuple[int, ...], variant: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Train as a client does in one round."""
    from zk0.data.episode_reader import EpisodeReader
    from zk0.policy.processors import make_processors
    from zk0.records import Statistics
    from zk0.settings.dataset_settings import ContractSettings, DataSettings, SimulatorSettings  # fmt: skip
    from zk0.settings.plans import RoundPlan, SessionTerms  # fmt: skip
    from zk0.settings.training_settings import LocalTrainingSettings, SchedulerSettings  # fmt: skip
    from zk0.training.cached_examples import CachedExamples
    from zk0.training.cached_policy import open_feature_cache, planned_adapter
    from zk0.training.decoded_examples import DecodedExamples
    from zk0.training.fit import fit

    folder = Path(arguments.folder)
    clock = StepClock(arguments, policy.config.device)
    training = LocalTrainingSettings(local_steps=clock.steps, batch_size=arguments.batch, **ZK0_VARIANTS[variant])
    pre, _ = make_processors(policy, Statistics(state=moments.state, action=moments.action))
    started = time.perf_counter(), time.process_time()
    build: dict[str, Any] = {}
    if training.features == "off":
        examples: Any = DecodedExamples(folder / "set", episodes, policy, pre, {})
    else:
        cache_folder = folder / f"cache-{variant}"
        cache = open_feature_cache(cache_folder, policy, recipe, training)
        examples = CachedExamples(EpisodeReader(folder / "set"), episodes, policy, pre, cache)
        stored = sum(f.stat().st_size for f in cache_folder.rglob("*.npy"))
        build = {
            "build_seconds": time.perf_counter() - started[0],
            "build_cpu_seconds": time.process_time() - started[1],
            "frames": examples.frames,
            "bytes_per_frame": round(stored / examples.frames),
        }
    terms = SessionTerms(
        session="bench", seed=42, contract=ContractSettings(), data=DataSettings(), simulator=SimulatorSettings()
    )
    plan = RoundPlan(
        terms=terms, round=1, client="bench", recipe=recipe, global_digest="", statistics=None, lr=1e-4, mu=0.01,
        training=training, scheduler=SchedulerSettings(),
    )  # fmt: skip
    clock.begin()
    with planned_adapter(policy, plan):
        fit(policy, examples, plan, lambda *_: clock.tick())
    return build | clock.figures()


class StepClock:
    """Wall and CPU time of steps, and afterwards a profile of some more, if it is asked for.

    Args:
        arguments: number of timed steps, and whether to profile.
        device: that trains.
    """

    def __init__(self, arguments: argparse.Namespace, device: str) -> None:
        self._timed = arguments.steps + 1
        self._profile = StepProfile(device) if arguments.profile else None
        self._ticks: list[tuple[float, float]] = []
        self.steps = self._timed + (PROFILED_STEPS + STEPS_UNREAD if self._profile else 0)
        """Steps to make."""

    def begin(self) -> None:
        """Reset the peak of memory, just before the first step."""
        reset_peak_memory()

    def tick(self) -> None:
        """Record the end of a step."""
        if len(self._ticks) < self._timed:
            self._ticks.append((time.perf_counter(), time.process_time()))
        if len(self._ticks) == self._timed and self._profile:
            self._profile.tick()

    def figures(self) -> dict[str, Any]:
        """Medians over all steps but the first, which is a warm-up, and the parts of a step."""
        wall, cpu = ([b - a for a, b in itertools.pairwise(times)] for times in zip(*self._ticks, strict=True))
        step = statistics.median(wall)
        parts = {"parts_ms": step_parts(self._profile.work, PROFILED_STEPS, step)} if self._profile else {}
        return {"step_seconds": step, "step_cpu_seconds": statistics.median(cpu)} | parts


def reset_peak_memory() -> None:
    """Measure the peak of memory from now on."""
    import torch

    Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def memory_kib(field: str) -> int:
    """A memory figure of this process in KiB, from Linux's /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def with_ratios(variants: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All results with their ratios to LeRobot's time. The names of the ratios are read by the nightly comparison."""
    on_gpu = variants["lerobot"]["device"] != "cpu"
    step, build = ("step_seconds", "build_seconds") if on_gpu else ("step_cpu_seconds", "build_cpu_seconds")
    plain = variants["lerobot"][step]
    for row in variants.values():
        row["times_faster"] = plain / row[step]
    ratios = {f"train: {name} / lerobot": row[step] / plain for name, row in variants.items() if name != "lerobot"}
    return {"variants": variants, "ratio_of": step, "build_of": build, "ratios": ratios}


def epochs_to_break_even(row: dict[str, Any], plain: dict[str, Any], batch: int, keys: tuple[str, str]) -> str:
    """Passes over the frames after which computing features and training took less time than LeRobot's training."""
    step, build = keys
    saved = (plain[step] - row[step]) / batch * row["frames"]
    return f"{row[build] / saved:.1f}" if saved > 0 else "never"


def table(result: dict[str, Any]) -> str:
    """The results as a Markdown table; the last three columns are about the feature cache."""
    settings, variants = result["settings"], result["variants"]
    plain, batch = variants["lerobot"], settings["batch"]
    keys = (result["ratio_of"], result["build_of"])
    of_step: dict[str, Callable[[dict[str, Any]], str]] = {
        "ms/step": lambda r: f"{r['step_seconds'] * 1e3:.1f}",
        "CPU ms/step": lambda r: f"{r['step_cpu_seconds'] * 1e3:.1f}",
        "times faster": lambda r: f"{r['times_faster']:.1f}",
        "samples/s": lambda r: f"{batch / r['step_seconds']:.2f}",
        "peak MiB": lambda r: f"{r['peak_mib']:.0f}",
    }
    of_features: dict[str, Callable[[dict[str, Any]], str]] = {
        "bytes/frame": lambda r: f"{r['bytes_per_frame']:,}",
        "build CPU ms/frame": lambda r: f"{r['build_cpu_seconds'] / r['frames'] * 1e3:.0f}",
        "epochs to break even": lambda r: epochs_to_break_even(r, plain, batch, keys),
    }
    lines = [
        f"{plain['parameters']:,} parameters, batch {batch}, median of {settings['steps']} steps, {plain['device']}, "
        f"{settings['threads']} thread(s)",
        "| variant | " + " | ".join([*of_step, *of_features]) + " |",
        "|---|" + "---:|" * (len(of_step) + len(of_features)),
    ]
    for name, row in variants.items():
        cells = [make(row) for make in of_step.values()]
        cells += [make(row) if "frames" in row else "" for make in of_features.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parts_table(result: dict[str, Any]) -> str:
    """What the device works on in a step, as a Markdown table in milliseconds; `use` is the share that is not idle."""
    kinds: Sequence[str] = (*KINDS, "other", "idle")
    lines = ["| variant | step | use | " + " | ".join(kinds) + " |", "|---|" + "---:|" * (len(kinds) + 2)]
    for name, row in result["variants"].items():
        step, parts = row["step_seconds"] * 1e3, row["parts_ms"]
        cells = [f"{step:.1f}", f"{1 - parts['idle'] / step:.0%}", *(f"{parts[kind]:.1f}" for kind in kinds)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
