"""Averaging the clients' weights: ours, Flower's FedAvg, and what the memory bus allows, side by side.

    python benchmarks/aggregate.py --clients 12 --parameters 100000000 --json

Each way runs in a process of its own, one thread, over the same files; seconds are the best of `--repeats`. Peak
memory is that of the process above what its imports take. `zk0` starts from files and ends with a file on the disk
(mean, norms, cosines, SHA-256, fsync). `zk0 verify` is the check of every update before it. `Flower` starts with all
replies in memory and ends in memory. `memory` copies every client's bytes once: nothing that looks at all updates
can be faster.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zk0.aggregate import aggregate, verify_update
from zk0.records import ClientMetrics, Update
from zk0.weights import load_weights, open_weights, save_weights

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
Work = tuple[Callable[[], object], Callable[[], Path | None]]
"""What is timed, and what gives the file with the result (if there is one)."""


def main() -> None:
    """Run every way and print a table, or JSON."""
    arguments = parsed()
    if arguments.way:
        sys.stdout.write(json.dumps(measured(arguments.way, Path(arguments.folder), arguments.repeats)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="zk0-aggregate-") as folder:
        write_updates(Path(folder), arguments.clients, arguments.parameters, arguments.tensors)
        rows = {way: in_its_own_process(way, folder, arguments.repeats) for way in WAYS}
        difference = largest_difference(Path(rows["zk0"]["result"]), Path(rows["Flower"]["result"]))
    result = {
        "clients": arguments.clients,
        "parameters": arguments.parameters,
        "tensors": arguments.tensors,
        "largest_difference_to_flower": difference,
        "ways": {
            way: {**row, "to_memory": row["seconds"] / rows["memory"]["seconds"], "result": None}
            for way, row in rows.items()
        },
    }
    sys.stdout.write((json.dumps(result, indent=2) if arguments.json else table(result)) + "\n")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--parameters", type=int, default=10_000_000, help="of one client, in all tensors together")
    parser.add_argument("--tensors", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", help="where the weights are put meanwhile; unset: the system's temporary folder")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    return parser.parse_args()


def table(result: dict[str, Any]) -> str:
    """The result for people; the last column is how often the memory floor fits into the time."""
    ways = result["ways"]
    lines = [
        f"{result['clients']} clients x {result['parameters']:,} float32 parameters in {result['tensors']} tensors",
        f"{'':12}{'seconds':>10}{'peak MiB':>11}{'to memory':>11}{'to Flower':>11}",
    ]
    for way, row in ways.items():
        to_flower = row["seconds"] / ways["Flower"]["seconds"]
        lines.append(
            f"{way:12}{row['seconds']:>10.3f}{row['peak_mib']:>11.1f}{row['to_memory']:>11.2f}{to_flower:>11.2f}"
        )
    return "\n".join(
        [*lines, f"largest difference between zk0 and Flower: {result['largest_difference_to_flower']:.2g}"]
    )


def write_updates(folder: Path, clients: int, parameters: int, tensors: int) -> None:
    """Global weights and the updates of all clients, with the records that name them."""
    sizes = [parameters // tensors] * (tensors - 1)
    sizes.append(parameters - sum(sizes))
    rng = np.random.default_rng(0)
    values = {f"tensor.{i:04d}": rng.standard_normal(size, dtype=np.float32) for i, size in enumerate(sizes)}
    global_digest, _ = save_weights(folder / "global.safetensors", values)
    for number in range(clients):
        for tensor in values.values():
            tensor += np.float32(0.001 * (number + 1))
        path = folder / f"client-{number:03d}.safetensors"
        found, size = save_weights(path, values)
        metrics = dict.fromkeys(ClientMetrics.model_fields, 1)
        update = Update(
            client=path.stem, round=1, global_digest=global_digest, path=str(path), digest=found, bytes=size,
            examples=100 + number, dataset="benchmark", metrics=ClientMetrics.model_validate(metrics),
        )  # fmt: skip
        path.with_suffix(".json").write_text(update.model_dump_json())


def in_its_own_process(way: str, folder: str, repeats: int) -> dict[str, Any]:
    """One way's seconds, peak memory and result."""
    command = [sys.executable, __file__, "--way", way, "--folder", folder, "--repeats", str(repeats)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **ONE_THREAD})
    return dict(json.loads(done.stdout))


def measured(way: str, folder: Path, repeats: int) -> dict[str, Any]:
    """Run one way in this process."""
    updates = [Update.model_validate_json(path.read_text()) for path in sorted(folder.glob("client-*.json"))]
    prepare = WAYS[way](folder, updates)
    before = status("VmRSS")
    work, result = prepare()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    peak = (status("VmHWM") - before) / 1024
    path = result()
    return {"seconds": min(seconds), "all_seconds": seconds, "peak_mib": peak, "result": path and str(path)}


def status(field: str) -> int:
    """A figure of this process in KiB, from Linux's /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def with_zk0(folder: Path, updates: list[Update]) -> Callable[[], Work]:
    """Ours, from files to a file."""
    target = folder / "zk0.safetensors"
    return lambda: (lambda: aggregate(updates, folder / "global.safetensors", target), lambda: target)


def with_zk0_verify(folder: Path, updates: list[Update]) -> Callable[[], Work]:
    """Our check of every update."""
    where = folder / "global.safetensors"

    def work() -> None:
        for update in updates:
            assert not verify_update(update, round=1, global_digest=update.global_digest, global_path=where, seen=())

    return lambda: (work, lambda: None)


def with_flower(folder: Path, updates: list[Update]) -> Callable[[], Work]:
    """Flower's FedAvg over replies that are in memory."""
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    averaged = ArrayRecord()
    target = folder / "flower.safetensors"

    def reply(update: Update) -> RecordDict:
        arrays = ArrayRecord({name: Array(values) for name, values in load_weights(Path(update.path)).items()})
        return RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": update.examples})})

    def prepare() -> Work:
        replies = [reply(update) for update in updates]

        def work() -> None:
            nonlocal averaged
            averaged = aggregate_arrayrecords(replies, "num-examples")

        return work, save

    def save() -> Path:
        save_weights(target, {name: array.numpy() for name, array in averaged.items()})
        return target

    return prepare


def with_memory(folder: Path, updates: list[Update]) -> Callable[[], Work]:
    """Every client's bytes copied once, in memory."""

    def prepare() -> Work:
        source = np.concatenate([tensor.ravel() for tensor in load_weights(folder / "global.safetensors").values()])
        target = np.empty_like(source)

        def work() -> None:
            for _ in updates:
                np.copyto(target, source)

        return work, lambda: None

    return prepare


def largest_difference(first: Path, second: Path) -> float:
    """The largest absolute difference between two files' values."""
    with open_weights(first) as a, open_weights(second) as b:
        return max(float(np.abs(a[name].astype(np.float64) - b[name]).max()) for name in a)


WAYS: dict[str, Callable[[Path, list[Update]], Callable[[], Work]]] = {
    "zk0": with_zk0,
    "zk0 verify": with_zk0_verify,
    "Flower": with_flower,
    "memory": with_memory,
}

if __name__ == "__main__":
    main()
