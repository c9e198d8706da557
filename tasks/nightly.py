"""The steps of the nightly benchmark: run pinned sessions and benchmarks, compare with the last good night, show it."""

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

from tasks.events import ProgressEvent, emit_progress, log_line
from tasks.retry import DISK_RETRIES
from tasks.subprocesses import run_zk0
from zk0.audit.ledger import Ledger
from zk0.errors import BenchmarkError
from zk0.nightly.nightly_ledger import BenchmarkSample, Machine, NightlyLedger, NightlyRun, PinnedSessionResult
from zk0.nightly.regression import MeasurementComparison
from zk0.settings.loading import load_session
from zk0.storage.session_folder import SessionFolder

REGRESSION_EVENT = "zk0.benchmark.regressed"
RECORDED_LIBRARIES = ("torch", "lerobot", "flwr", "prefect", "numpy")
_NIGHTS_SHOWN = 30


@task(task_run_name="run {config}", cache_policy=NO_CACHE, **DISK_RETRIES)
def run_pinned_session(config: str, folder: str) -> PinnedSessionResult:
    """Run a session whose file never changes from its start; return its last digest, its losses and its times.

    Raises:
        BenchmarkError: the session fails.
    """
    emit_progress(ProgressEvent(kind="stage", text=f"running {config}"))
    session, output = load_session(Path(config)), Path(tempfile.mkdtemp(prefix="session-", dir=folder))
    run_zk0(["run", config, "--quiet", "--set", f"output_dir={output}"], f"the session {config}", BenchmarkError)
    (made,) = output.iterdir()
    history = Ledger(SessionFolder(made).ledger).read()
    last = history[-1]
    if last.evaluation is None:
        raise BenchmarkError(f"{config}: its last round was not evaluated")
    log_line(f"{session.name}: policy loss {last.evaluation.policy_loss:.4f}, digest {last.checkpoint.digest[:12]}")
    return PinnedSessionResult(
        name=session.name,
        digest=last.checkpoint.digest,
        seconds=tuple(record.seconds for record in history[1:]),
        evaluation=last.evaluation,
    )


@task(task_run_name="measure {name}", cache_policy=NO_CACHE, **DISK_RETRIES)
def run_benchmark(name: str, options: Sequence[str], repeats: int, folder: str) -> tuple[BenchmarkSample, ...]:
    """Run a script of benchmarks/ several times; return each of its ratios with the values of all repeats.

    Raises:
        BenchmarkError: the script fails.
    """
    emit_progress(ProgressEvent(kind="stage", text=f"measuring {name}"))
    found: list[Mapping[str, float]] = []
    for number in range(repeats):
        file = Path(folder) / f"{name}-{number}.json"
        run_zk0(["bench", name, *options, "--json", str(file)], f"the benchmark {name}", BenchmarkError)
        found.append(json.loads(file.read_text(encoding="utf-8"))["ratios"])
    samples = [BenchmarkSample(name=key, ratios=tuple(ratios[key] for ratios in found)) for key in found[0]]
    for sample in samples:
        log_line(f"{sample.name}: {', '.join(f'{ratio:.4g}' for ratio in sample.ratios)}")
    return tuple(samples)


@task(task_run_name="record the night", cache_policy=NO_CACHE, **DISK_RETRIES)
def append_night(ledger: str, night: NightlyRun) -> None:
    """Append the night to the file of all nights."""
    NightlyLedger(Path(ledger)).append(night)


@task(task_run_name="show the night", cache_policy=NO_CACHE)
def show_night(
    tonight: NightlyRun,
    compared: Sequence[MeasurementComparison],
    nights: Sequence[NightlyRun],
    changed: Sequence[str],
) -> None:
    """Log the comparison with the last good night, and show it in the UI as a table with the nights before it.

    Args:
        tonight: the night.
        compared: each measurement against the last good night.
        nights: all earlier nights.
        changed: pinned sessions that end with other weights than in the last good night.
    """
    for comparison in compared:
        log_line(comparison.summary())
    for name in changed:
        log_line(f"{name}: the weights differ from the last good night's, with the same versions on the same machine")
    rows: list[dict[str, Any]] = [
        {
            "measurement": c.name,
            "now": _short(c.now),
            "last good night": _short(c.before),
            "change": _short(c.change),
            "95 % interval": c.interval and " to ".join(_short(end) or "" for end in c.interval),
            "outcome": c.outcome,
            "nights before": ", ".join(_mean_ratios(c.name, nights)),
        }
        for c in compared
    ]
    title = f"{tonight.started_at}, commit {(tonight.commit or 'unknown')[:12]}, {tonight.machine.cpu}"
    create_table_artifact(table=rows, key="benchmark", description=title)


def emit_regression_event(regressions: Sequence[str], accepted: str | None) -> None:
    """Emit the Prefect event by which an automation reports that a measurement got worse.

    Args:
        regressions: one sentence for each measurement.
        accepted: the reason to accept the night nonetheless; None where it was not accepted.
    """
    run = str(flow_run.id)
    emit_event(
        REGRESSION_EVENT,
        resource={"prefect.resource.id": "zk0.benchmark", "prefect.resource.name": "nightly"},
        related=[{"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.role": "flow-run"}],
        payload={"regressions": list(regressions), "accepted": accepted},
    )


def this_machine() -> Machine:
    """Return processor, number of cores and GPU of this machine."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return Machine(cpu=model or platform.machine(), cores=os.cpu_count() or 1, gpu=_gpu())


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a result depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in RECORDED_LIBRARIES}}


def git_commit() -> str | None:
    """Return the commit of the working directory, with `-dirty` where a file is changed; None without git."""
    return _output_of("git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty") or None


def _gpu() -> str | None:
    return _output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").partition("\n")[0] or None


def _output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _mean_ratios(name: str, nights: Sequence[NightlyRun]) -> list[str]:
    found = [s for night in nights for s in night.samples if s.name == name][-_NIGHTS_SHOWN:]
    return [f"{sum(s.ratios) / len(s.ratios):.3g}" for s in found]
