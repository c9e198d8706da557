"""Aggregation of updates: zk0, Flower's FedAvg, and what the memory bandwidth allows, side by side.

    python benchmarks/aggregate.py --clients 12 --parameters 99880992 --json aggregate.json

Each way runs in a process of its own, on `--threads` threads, over the same files. The ways take turns `--repeats`
times and the best time of each counts, so that a load on the machine affects all of them. Peak memory is that of the
process minus what its imports take, without the system's page cache.

- `copy` copies every client's bytes once in memory: nothing that reads all updates can be faster.
- `add` is the weighted float32 sum of the clients in memory with PyTorch, the least work of an average.
- `Flower` starts with all replies in memory and ends in memory (FedAvg, float32).
- `zk0 mean` starts from files: float64 mean, each delta's norm and cosine. The result is dropped block by block.
- `zk0` also writes the result to a file: BLAKE3, write, fsync.
- `zk0 verify` verifies every update before: BLAKE3, finite values, norm of the delta.

`--memory` measures the peak of `zk0` for 4 to 100 clients; each file then serves as the update of several clients.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from zk0.aggregation import kernels
from zk0.aggregation.aggregate import aggregate
from zk0.aggregation.block_reader import BlockReader
from zk0.aggregation.block_reducer import BlockReducer
from zk0.aggregation.blocks import map_in_order, split_into_blocks
from zk0.aggregation.open_round import open_round_files
from zk0.aggregation.reduction_plan import AggregationTerms, plan_reduction
from zk0.aggregation.strategies import build_strategy
from zk0.aggregation.verify import verify_update
from zk0.records import ClientMetrics, Update
from zk0.weights.digests import load_weights
from zk0.weights.files import open_weights
from zk0.weights.writer import save_weights

Work = tuple[Callable[[], object], Callable[[], Path | None]]
"""The function that is timed, and one that returns the file with its result (if there is one)."""


def main() -> None:
    """Measure every way and print a table."""
    arguments = parse_arguments()
    if arguments.way:
        serve(arguments.way, Path(arguments.folder), arguments.clients, arguments.threads)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="zk0-aggregate-") as folder:
        write_updates(Path(folder), arguments.clients, arguments.parameters, arguments.tensors)
        rows = measure_in_turns(folder, arguments)
        result = {
            "clients": arguments.clients,
            "parameters": arguments.parameters,
            "tensors": arguments.tensors,
            "threads": arguments.threads,
            "largest_difference_to_flower": largest_difference(Path(folder, "zk0"), Path(folder, "Flower")),
            "ways": rows,
            "peak_mib_of_clients": peaks(folder, arguments) if arguments.memory else {},
            "ratios": {
                f"aggregate: {way} / copy": row["to_copy"] for way, row in rows.items() if way.startswith("zk0")
            },
        }
    sys.stdout.write(table(result) + "\n")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--parameters", type=int, default=10_000_000, help="of one client, over all tensors")
    parser.add_argument("--tensors", type=int, default=160)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="also measure the peak memory of 4 to 100 clients")
    parser.add_argument("--folder", help="folder for the weights; default: the system's temporary folder")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers to this file")
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_in_turns(folder: str, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return every way's best seconds and peak memory; all processes run at once and are measured one by one."""
    with ExitStack() as stack:
        workers = {way: stack.enter_context(worker(way, folder, arguments.clients, arguments)) for way in WAYS}
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(arguments.repeats):
            for way, ask in workers.items():
                found[way].append(ask())
    copy_seconds = min(row["seconds"] for row in found["copy"])
    best = {way: min(row["seconds"] for row in rows) for way, rows in found.items()}
    return {
        way: {
            "seconds": best[way],
            "cpu_seconds": min(row["cpu_seconds"] for row in rows),
            "peak_mib": max(row["peak_mib"] for row in rows),
            "to_copy": best[way] / copy_seconds,
            "to_flower": best[way] / best["Flower"],
        }
        for way, rows in found.items()
    }


def peaks(folder: str, arguments: argparse.Namespace) -> dict[int, float]:
    """Measure the peak memory of zk0 in MiB, by number of clients."""
    found = {}
    for clients in (4, 12, 40, 100):
        with worker("zk0", folder, clients, arguments) as ask:
            found[clients] = ask()["peak_mib"]
    return found


@contextmanager
def worker(way: str, folder: str, clients: int, arguments: argparse.Namespace) -> Iterator[Callable[[], Any]]:
    """Start a process for one way; the yielded function runs it once and returns the measurement."""
    command = [sys.executable, __file__, "--way", way, "--folder", folder, "--clients", str(clients)]
    command += ["--threads", str(arguments.threads)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(arguments.threads))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **threads}
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        question, answer = process.stdin, process.stdout

        def ask() -> Any:
            question.write("\n")
            question.flush()
            return json.loads(answer.readline())

        yield ask
        question.close()


def serve(way: str, folder: Path, clients: int, threads: int) -> None:
    """Run a way once for each line on standard input."""
    records = [Update.model_validate_json(path.read_text()) for path in sorted(folder.glob("client-*.json"))]
    updates = [records[i % len(records)].model_copy(update={"client": f"c{i:03d}"}) for i in range(clients)]
    prepare = WAYS[way](folder, updates, threads)
    before = status("VmRSS")
    work, save = prepare()
    for _ in sys.stdin:
        started, busy = time.perf_counter(), time.process_time()
        work()
        seconds, cpu = time.perf_counter() - started, time.process_time() - busy
        row = {"seconds": seconds, "cpu_seconds": cpu, "peak_mib": (status("VmHWM") - before) / 1024}
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()
    save()


def table(result: dict[str, Any]) -> str:
    """Format the result as a table."""
    lines = [
        f"{result['clients']} clients x {result['parameters']:,} float32 parameters in {result['tensors']} tensors, "
        f"{result['threads']} threads",
        f"{'':12}{'seconds':>10}{'CPU s':>9}{'peak MiB':>11}{'to copy':>10}{'to Flower':>11}",
    ]
    for way, row in result["ways"].items():
        lines.append(
            f"{way:12}{row['seconds']:>10.3f}{row['cpu_seconds']:>9.3f}{row['peak_mib']:>11.1f}"
            f"{row['to_copy']:>10.2f}{row['to_flower']:>11.2f}"
        )
    for clients, peak in result["peak_mib_of_clients"].items():
        lines.append(f"peak memory of zk0 with {clients:>3} clients: {peak:6.1f} MiB")
    return "\n".join(
        [*lines, f"largest difference between zk0 and Flower: {result['largest_difference_to_flower']:.2g}"]
    )


def write_updates(folder: Path, clients: int, parameters: int, tensors: int) -> None:
    """Write global weights and the updates of all clients, with their records."""
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


def status(field: str) -> int:
    """Return a field of this process's status in KiB, from Linux's /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def compile_kernels() -> None:
    """Compile the kernels before the measurement."""
    one, sums = np.ones((1, 1), np.float32), np.ones(1)
    kernels.weighted_mean_kernel(one, sums, np.zeros(1, np.intp), sums)
    kernels.delta_products_kernel(one, one[0], one[0], sums, sums)
    kernels.delta_norm_kernel(one[0], one[0], 1.0)


def with_zk0_mean(folder: Path, updates: list[Update], threads: int) -> Callable[[], Work]:
    """zk0, from files to blocks of new weights, which are dropped."""
    compile_kernels()

    def work() -> None:
        with open_round_files(updates, folder / "global.safetensors") as open_round:
            reader, specs = BlockReader(open_round.global_weights, open_round.sources), open_round.global_weights.specs
            terms = AggregationTerms()
            plan = plan_reduction(open_round, build_strategy(terms.settings), terms, threads)
            deque(
                map_in_order(BlockReducer(reader, plan), split_into_blocks(specs, specs, reader.length), threads),
                maxlen=0,
            )

    return lambda: (work, lambda: None)


def with_zk0(folder: Path, updates: list[Update], threads: int) -> Callable[[], Work]:
    """zk0, from files to a file."""
    compile_kernels()
    target = folder / "zk0"
    return lambda: (lambda: aggregate(updates, folder / "global.safetensors", target, threads=threads), lambda: target)


def with_zk0_verify(folder: Path, updates: list[Update], threads: int) -> Callable[[], Work]:
    """zk0's verification of every update."""
    compile_kernels()
    where = folder / "global.safetensors"

    def work() -> None:
        for update in updates:
            digest = update.global_digest
            found = verify_update(update, round=1, global_digest=digest, global_path=where, already_received=())
            assert isinstance(found, float), found

    return lambda: (work, lambda: None)


def with_flower(folder: Path, updates: list[Update], threads: int) -> Callable[[], Work]:
    """Flower's FedAvg over replies in memory."""
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    averaged = ArrayRecord()

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
        save_weights(folder / "Flower", {name: array.numpy() for name, array in averaged.items()})
        return folder / "Flower"

    return prepare


def with_copy(folder: Path, updates: list[Update], threads: int) -> Callable[[], Work]:
    """Copy every client's bytes once, in memory."""
    return lambda: in_memory(folder, updates, threads, lambda target, source, _: target.copy_(source))


def with_add(folder: Path, updates: list[Update], threads: int) -> Callable[[], Work]:
    """Sum up the weighted clients in memory."""
    return lambda: in_memory(folder, updates, threads, lambda total, source, n: total.add_(source, alpha=n))


def in_memory(folder: Path, updates: list[Update], threads: int, step: Callable[[Any, Any, float], Any]) -> Work:
    """Apply a PyTorch operation to one client's values, once for each client."""
    import torch

    torch.set_num_threads(threads)
    weights = load_weights(folder / "global.safetensors")
    source = torch.from_numpy(np.concatenate([tensor.ravel() for tensor in weights.values()]))
    target = torch.zeros_like(source)

    def work() -> None:
        for update in updates:
            step(target, source, 1 / update.examples)

    return work, lambda: None


def largest_difference(first: Path, second: Path) -> float:
    """Return the largest absolute difference between two files' values."""
    with open_weights(first) as a, open_weights(second) as b:
        return max(float(np.abs(a[name].astype(np.float64) - b[name]).max()) for name in a)


WAYS: dict[str, Callable[[Path, list[Update], int], Callable[[], Work]]] = {
    "copy": with_copy,
    "add": with_add,
    "Flower": with_flower,
    "zk0 mean": with_zk0_mean,
    "zk0": with_zk0,
    "zk0 verify": with_zk0_verify,
}

if __name__ == "__main__":
    main()
