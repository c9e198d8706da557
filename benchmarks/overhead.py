"""Overhead of a round besides training and evaluation: messages, checks, aggregation, ledger, Prefect.

    python benchmarks/overhead.py --clients 12,40,100 --rounds 8 --json overhead.json
    python benchmarks/overhead.py --clients 4,12,40,100,1000 --rounds 4 --steps 1   # slow
    python benchmarks/overhead.py --clients 100,300,1000 --rounds 20 --steps 1 --buffer 10   # slow

Sessions with the tiny policy run as `zk0 run` runs them, one after the other, with one worker process (or `--workers`),
so that clients train one after the other. Columns, in milliseconds; medians over the rounds between the first, which
fills caches, and the last, which renders videos and saves a checkpoint:

    wall        from one finished round to the next
    train       sum of the clients' own measurements
    evaluate    the server's own measurement
    rest        wall - train - evaluate: the overhead
    cpu         CPU time of the session's own process, evaluation included: it depends less on other load
    late        rest in the second half of the rounds / rest in the first half: 1.0 if rounds do not become slower
    join/client time in which all clients check their datasets and join / clients
    memory      most resident memory of the session's process so far, in MB
    growth      its own memory (resident and not shared) at the end of the last counted round / of the first one
    wall/update wall - evaluate, for each update of the round
    CPU/update  cpu, for each update of the round
    runs        task runs of the session in Prefect
    imports     time in which a fresh process imports what a worker needs
    start       from the call to the end of round 0, without evaluation and without imports

`--buffer N`: buffered rounds of N updates, all clients at work at a time. Clients then train while the server evaluates
and aggregates, so that there is no `rest`, and `late` is that of `wall`.

`--full`: as many weights are trained, sent, checked and aggregated as of the full policy: 100 million, 400 MB.
"""

import argparse
import importlib
import itertools
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FRAMES, FPS, SIDE = 20, 10, 64
FULL_WIDTH = 25.625
"""Width multiplier of an action expert on the tiny vision-language model that has as many weights as the full one."""


def main() -> None:
    """Run the sessions and print the table."""
    from flows.prefect_local.temporary_server import configured_or_temporary_server

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="2", help="number of clients; 12,40,100 runs three sessions")
    parser.add_argument(
        "--rounds", type=int, default=8, help="number of rounds, at least 4; the first and the last are not counted"
    )
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of a client in a round")
    parser.add_argument("--workers", type=int, default=1, help="worker processes")
    parser.add_argument("--buffer", type=int, metavar="N", help="buffered rounds of N updates")
    parser.add_argument("--full", action="store_true", help="use an action expert as large as the full policy's")
    parser.add_argument("--json", metavar="FILE", help="write the numbers to this file too")
    arguments = parser.parse_args()
    if arguments.rounds < 4:
        parser.error("--rounds: expected at least 4")
    counts = [int(count) for count in arguments.clients.split(",")]
    with (
        tempfile.TemporaryDirectory(prefix="zk0-overhead-") as folder,
        configured_or_temporary_server(Path.cwd(), lambda _: None),
    ):
        write_data(Path(folder), max(counts))
        policy = write_wide_policy(Path(folder)) if arguments.full else "tiny"
        imports = import_seconds()
        rows = [run_session(Path(folder), count, arguments, policy) for count in counts]
    for row in rows:
        row |= {"imports": imports, "start": row["until_round_0"] - imports - row["evaluate_round_0"]}
    ratios = {
        f"overhead: a round of {row['clients']} clients / its training and evaluation": row["ratio"] for row in rows
    }
    result = {"rows": rows, "ratios": ratios}
    sys.stdout.write(table(rows) + "\n")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def run_session(folder: Path, clients: int, arguments: argparse.Namespace, policy: str) -> dict[str, Any]:
    """Run a session and return the medians of its rounds' times, in seconds."""
    from flows.federated_session import federated_session
    from tasks.events import ProgressEvent, add_progress_listener
    from zk0.audit.ledger import Ledger
    from zk0.storage.session_folder import SessionFolder

    ended: dict[int, float] = {}
    cpu: dict[int, float] = {}
    own_memory: dict[int, float] = {}
    stages: list[tuple[str, float]] = []

    def record_time(event: ProgressEvent) -> None:
        if event.kind == "round_finished":
            ended[event.round], cpu[event.round] = time.perf_counter(), time.process_time()
            own_memory[event.round] = own_megabytes()
        if event.kind == "stage":
            stages.append((event.text, time.perf_counter()))

    config, rounds = write_session(folder, clients, arguments, policy), arguments.rounds
    remove_listener = add_progress_listener(record_time)
    began, runs = time.perf_counter(), task_runs()
    try:
        here = SessionFolder(Path(federated_session(config=str(config))))
    finally:
        remove_listener()
    walls = {later: ended[later] - ended[earlier] for earlier, later in itertools.pairwise(sorted(ended))}
    history = Ledger(here.ledger).read()
    found = [
        {
            "wall": walls[record.round],
            "cpu": cpu[record.round] - cpu[record.round - 1],
            "train": sum(update.metrics.seconds for update in record.updates),
            "evaluate": record.evaluation.seconds if record.evaluation else 0.0,
            "updates": len(record.updates),
        }
        for record in history
        if 1 < record.round < rounds
    ]
    rest = [row["wall"] - row["train"] - row["evaluate"] for row in found]
    grows = [row["wall"] for row in found] if arguments.buffer else rest
    half = len(grows) // 2
    joined = next(then - now for (text, now), (_, then) in itertools.pairwise(stages) if "check their data" in text)
    return {
        "clients": clients,
        "join": joined / clients,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "growth": own_memory[rounds - 1] / own_memory[2],
        "memory_by_round": own_memory,
        "rounds": len(found),
        "megabytes": history[-1].checkpoint.bytes / 1e6,
        "until_round_0": ended[0] - began,
        "evaluate_round_0": history[0].evaluation.seconds if history[0].evaluation else 0.0,
        **{key: statistics.median(row[key] for row in found) for key in ("wall", "train", "evaluate", "cpu")},
        "rest": None if arguments.buffer else statistics.median(rest),
        "late": statistics.median(grows[half:]) / statistics.median(grows[: max(half, 1)]),
        "wall_update": statistics.median((row["wall"] - row["evaluate"]) / row["updates"] for row in found),
        "cpu_update": statistics.median(row["cpu"] / row["updates"] for row in found),
        "runs": task_runs() - runs,
        "ratio": statistics.median(row["wall"] / (row["train"] + row["evaluate"]) for row in found),
    }


def own_megabytes() -> float:
    """Return the memory of this process that is resident and shared with no file and no process."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text(encoding="utf-8").split())
    return (resident - shared) * resource.getpagesize() / 1e6


def task_runs() -> int:
    """Return the number of task runs that the Prefect server has."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return int(client.request("POST", "/task_runs/count", json={}).json())


def import_seconds() -> float:
    """Return the seconds in which a process imports what a worker needs, with files in the page cache.

    This process imports it too, so that the sessions do not.
    """
    needed = "import zk0.federation.protocol.client_app, zk0.client.client"
    found = []
    for _ in range(2):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", needed], check=True)
        found.append(time.perf_counter() - began)
    for module in ("zk0.client.client", "zk0.evaluation.global_model", "flows.federated_session"):
        importlib.import_module(module)
    return min(found)


def write_data(folder: Path, clients: int) -> None:
    """Write random recordings for the clients, and an evaluation set."""
    import numpy as np

    from zk0.data.dataset_writer import RecordedFrame, write_dataset
    from zk0.settings.dataset_settings import SO101_JOINTS

    def episode(rng: np.random.Generator) -> Iterator[RecordedFrame]:
        states = np.cumsum(rng.normal(size=(FRAMES + 1, 6)), axis=0).astype(np.float32) * 5
        image = rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        for t in range(FRAMES):
            yield RecordedFrame(states[t], states[t + 1], {"front": np.roll(image, t, axis=0)}, "Move the arm.")

    for seed, name in enumerate(("client-000", "unseen")):
        rng = np.random.default_rng(seed)
        episodes = [list(episode(rng)) for _ in range(3)]
        write_dataset(folder / name, episodes, fps=FPS, joints=SO101_JOINTS, robot_type="so101_follower")
    for number in range(1, clients):
        copy_with_offset(folder / "client-000", folder / f"client-{number:03d}", number / 1024)


def copy_with_offset(source: Path, target: Path, offset: float) -> None:
    """Copy a dataset with an offset on all states and actions: other recordings, in a hundredth of the time."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.copytree(source, target)
    for file in target.glob("data/**/*.parquet"):
        rows = pq.read_table(file)
        for column in ("observation.state", "action"):
            values = np.stack(rows[column].to_numpy()) + np.float32(offset)
            at, field = rows.schema.get_field_index(column), rows.schema.field(column)
            rows = rows.set_column(at, field, pa.array(list(values), field.type))
        pq.write_table(rows, file)
    found = json.loads((target / "meta/stats.json").read_text(encoding="utf-8"))
    for column in ("observation.state", "action"):
        for name in found[column].keys() - {"std", "count"}:
            found[column][name] = [value + offset for value in found[column][name]]
    (target / "meta/stats.json").write_text(json.dumps(found), encoding="utf-8")


def write_wide_policy(folder: Path) -> str:
    """Write a policy folder with random weights whose action expert is as large as the full policy's."""
    from train import write_random_policy

    from zk0.policy.smolvla.tiny_geometry import tiny_config, write_tiny_vlm

    wide = {"expert_width_multiplier": FULL_WIDTH, "vlm_model_name": str(write_tiny_vlm(folder))}
    return write_random_policy(folder / "wide", "front", SIDE, **tiny_config() | wide)


def write_session(folder: Path, clients: int, arguments: argparse.Namespace, policy: str) -> Path:
    """Write a session file over the random recordings."""
    import tomli_w

    names = [f"client-{i:03d}" for i in range(clients)]
    values = {
        "name": f"overhead-{clients}",
        "rounds": arguments.rounds,
        "clients": [{"name": name, "dataset": f"local:{folder / name}"} for name in names],
        "evaluation": {"datasets": [{"dataset": f"local:{folder / 'unseen'}"}], "clients_frequency": 0},
        "contract": {"cameras": ["front"]},
        "policy": {"path": policy},
        "training": {"local_steps": arguments.steps, "batch_size": 8, "lr": 1e-3},
        "federation": {"workers": arguments.workers},
        "output_dir": str(folder / "outputs"),
        "cache_dir": str(folder / "cache"),
    }
    if arguments.buffer:
        values["federation"] |= {"mode": "buffered"}
        values["buffer"] = {"size": arguments.buffer, "max_staleness": clients}
    file = folder / f"overhead-{clients}.toml"
    file.write_text(tomli_w.dumps(values), encoding="utf-8")
    return file


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table that is printed."""
    columns = ("imports", "start", "wall", "train", "evaluate", "rest", "cpu")
    lines = [
        f"a round with {rows[0]['megabytes']:.1f} MB of weights, median of {rows[0]['rounds']} rounds, milliseconds",
        f"{'clients':>8}{''.join(f'{column:>9}' for column in columns)}"
        f"{'rest/client':>13}{'late':>7}{'join/client':>13}{'memory':>8}{'growth':>8}"
        f"{'wall/update':>13}{'CPU/update':>12}{'runs':>7}",
    ]
    for row in rows:
        times = "".join(milliseconds(row[column], 9) for column in columns)
        each = None if row["rest"] is None else row["rest"] / row["clients"]
        lines.append(
            f"{row['clients']:>8}{times}{milliseconds(each, 13, 1)}{row['late']:>7.2f}"
            f"{milliseconds(row['join'], 13, 1)}{row['memory']:>8.0f}{row['growth']:>8.2f}"
            f"{milliseconds(row['wall_update'], 13, 1)}{milliseconds(row['cpu_update'], 12, 1)}{row['runs']:>7}"
        )
    return "\n".join(lines)


def milliseconds(seconds: float | None, width: int, digits: int = 0) -> str:
    """Format a duration for a column of the table; a dash where there is none."""
    return f"{'–':>{width}}" if seconds is None else f"{seconds * 1e3:>{width}.{digits}f}"


if __name__ == "__main__":
    main()
