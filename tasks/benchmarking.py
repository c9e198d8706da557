"""The steps of a nightly benchmark: pinned sessions and benchmarks as processes of their own, compared and shown."""

import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.runtime import flow_run

from tasks.children import run_zk0
from tasks.events import Event, say, tell
from zk0.errors import BenchmarkError
from zk0.folder import SessionFolder
from zk0.ledger import Ledger
from zk0.nights import Machine, Night, NightLedger, PinnedSession, Sample
from zk0.regression import Comparison
from zk0.session import load_session

EVENT = "zk0.benchmark.regressed"
LIBRARIES = ("torch", "lerobot", "flwr", "prefect", "numpy")
_SHOWN = 30


@task(task_run_name="play {config}", cache_policy=NO_CACHE)
def play(config: str, folder: str) -> PinnedSession:
    """A pinned session, run from its start as a user runs it.

    Raises:
        BenchmarkError: it fails.
    """
    tell(Event(kind="stage", text=f"playing {config}"))
    session, output = load_session(Path(config)), Path(tempfile.mkdtemp(prefix="session-", dir=folder))
    run_zk0(["run", config, "--quiet", "--set", f"output_dir={output}"], f"the session {config}", BenchmarkError)
    (made,) = output.iterdir()
    history = Ledger(SessionFolder(made).ledger).read()
    last = history[-1]
    if last.evaluation is None:
        raise BenchmarkError(f"{config}: its last round was not judged")
    say(f"{session.name}: policy loss {last.evaluation.policy_loss:.4f}, digest {last.checkpoint.digest[:12]}")
    return PinnedSession(
        name=session.name,
        digest=last.checkpoint.digest,
        seconds=tuple(record.seconds for record in history[1:]),
        evaluation=last.evaluation,
    )


@task(task_run_name="measure {name}", cache_policy=NO_CACHE)
def measure(name: str, options: Sequence[str], repeats: int, folder: str) -> tuple[Sample, ...]:
    """What a benchmark of benchmarks/ measures side by side, once a repeat.

    Raises:
        BenchmarkError: it fails, or gives no ratios.
    """
    tell(Event(kind="stage", text=f"measuring {name}"))
    found: list[Mapping[str, float]] = []
    for number in range(repeats):
        figures = Path(folder) / f"{name}-{number}.json"
        run_zk0(["bench", name, *options, "--json", str(figures)], f"the benchmark {name}", BenchmarkError)
        found.append(json.loads(figures.read_text(encoding="utf-8"))["ratios"])
    samples = [Sample(name=key, ratios=tuple(ratios[key] for ratios in found)) for key in found[0]]
    for sample in samples:
        say(f"{sample.name}: {', '.join(f'{ratio:.4g}' for ratio in sample.ratios)}")
    return tuple(samples)


@task(task_run_name="write the night down", cache_policy=NO_CACHE)
def keep(ledger: str, night: Night) -> None:
    """The night as one more line of the record of all nights."""
    NightLedger(Path(ledger)).append(night)


@task(task_run_name="show the night", cache_policy=NO_CACHE)
def show(tonight: Night, compared: Sequence[Comparison], nights: Sequence[Night], changed: Sequence[str]) -> None:
    """Tonight against the last good night, and the nights before it, as a table in the UI."""
    for comparison in compared:
        say(comparison.told())
    for name in changed:
        say(f"{name}: the weights are not those of the last good night, with the same versions on the same machine")
    rows: list[dict[str, Any]] = [
        {
            "measurement": c.name,
            "now": _short(c.now),
            "last good night": _short(c.before),
            "change": _short(c.change),
            "95 % interval": c.interval and " to ".join(_short(end) or "" for end in c.interval),
            "outcome": c.outcome,
            "nights before": ", ".join(_history(c.name, nights)),
        }
        for c in compared
    ]
    title = f"{tonight.began_at}, commit {(tonight.commit or 'unknown')[:12]}, {tonight.machine.cpu}"
    create_table_artifact(table=rows, key="benchmark", description=title)


def announce(regressions: Sequence[str], accepted: str | None) -> None:
    """Say to the server that something got worse; automations listen for it."""
    run = str(flow_run.id)
    emit_event(
        EVENT,
        resource={"prefect.resource.id": "zk0.benchmark", "prefect.resource.name": "nightly"},
        related=[{"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.role": "flow-run"}],
        payload={"regressions": list(regressions), "accepted": accepted},
    )


def this_machine() -> Machine:
    """Processor, cores and GPU."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return Machine(cpu=model or platform.machine(), cores=os.cpu_count() or 1, gpu=_gpu())


def versions() -> dict[str, str]:
    """Of Python and the libraries that decide results."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def commit() -> str | None:
    """Of the checkout in the working directory, `-dirty` where something is changed; None without git."""
    described = _said("git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    return described or None


def _gpu() -> str | None:
    return _said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").partition("\n")[0] or None


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _history(name: str, nights: Sequence[Night]) -> list[str]:
    found = [s for night in nights for s in night.samples if s.name == name][-_SHOWN:]
    return [f"{sum(s.ratios) / len(s.ratios):.3g}" for s in found]
