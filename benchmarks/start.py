"""Seconds from `zk0 run` to its flow run and to the first task run, each time with a new Prefect home and a new cache.

    python benchmarks/start.py deployments/sessions/demo.toml --set policy.path=tiny --repeats 3

The command starts a Prefect server, because none is configured, and is stopped when its first task runs. The times of
runs are those of Prefect's database. `--tree FOLDER` and `--module NAME` start the `zk0` of another checkout, with the
same packages, for comparison; the two take turns.
"""

import argparse
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
_LIMIT_SECONDS = 300.0
_STOP_SECONDS = 60.0
_POLL_SECONDS = 0.1
_TABLES = ("flow_run", "task_run")


def main() -> None:
    """Start the sessions and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("session", help="session file, in each checkout")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="replace a setting")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tree", type=Path, help="another checkout to compare with")
    parser.add_argument("--module", default="flows.cli.main", help="module of its `zk0` command")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers to this file")
    arguments = parser.parse_args()
    commands = {"here": (ROOT, "flows.cli.main")}
    if arguments.tree:
        commands["tree"] = (arguments.tree.resolve(), arguments.module)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(arguments.repeats):
        for name, (tree, module) in commands.items():
            found[name].append(start_times(tree, module, [arguments.session, *_options(arguments.set)]))
    medians = {
        name: [statistics.median(column) for column in zip(*times, strict=True)] for name, times in found.items()
    }
    sys.stdout.write("| checkout | flow run after, s | first task run after, s |\n|---|---:|---:|\n")
    for name, (flow, task) in medians.items():
        sys.stdout.write(f"| {name} | {flow:.1f} | {task:.1f} |\n")
    ratios = {}
    if arguments.tree:
        ratios["start: first task run, here / tree"] = medians["here"][1] / medians["tree"][1]
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"seconds": found, "ratios": ratios}, indent=2) + "\n", "utf-8")


def start_times(tree: Path, module: str, arguments: list[str]) -> tuple[float, float]:
    """Return the seconds from the start of `zk0 run` to the flow run and to the first task run; then stop it."""
    with tempfile.TemporaryDirectory(prefix="zk0-start-", ignore_cleanup_errors=True) as folder:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        environment |= {"PREFECT_HOME": folder, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}
        places = _options([f"cache_dir={folder}/cache", f"output_dir={folder}/outputs"])
        command = [sys.executable, "-m", module, "run", *arguments, *places]
        log = Path(folder) / "zk0.log"
        began = time.time()
        with log.open("wb") as out:
            process = subprocess.Popen(command, cwd=tree, env=environment, stdout=out, stderr=out)
        try:
            while (found := _first_runs(Path(folder) / "prefect.db")) is None:
                if process.poll() is not None or time.time() > began + _LIMIT_SECONDS:
                    raise SystemExit(f"no task run began; the end of the log:\n{log.read_text('utf-8')[-2000:]}")
                time.sleep(_POLL_SECONDS)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    flow, task = found
    return flow - began, task - began


def _first_runs(database: Path) -> tuple[float, float] | None:
    """Return when the first flow run and the first task run began, in seconds since 1970; None before both have."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        starts = [connection.execute(f"SELECT min(start_time) FROM {table}").fetchone()[0] for table in _TABLES]
        if all(starts):
            flow, task = (datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() for text in starts)
            return flow, task
    return None


def _options(settings: list[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


if __name__ == "__main__":
    main()
