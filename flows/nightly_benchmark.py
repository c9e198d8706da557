"""The flow of the nightly benchmark: pinned sessions and benchmarks, compared with the last good night."""

import tempfile
from datetime import datetime
from pathlib import Path

from prefect import flow

from tasks import nightly
from zk0.errors import BenchmarkError
from zk0.nightly.nightly_ledger import NightlyLedger, NightlyRun
from zk0.nightly.regression import changed_weights, compare_nightly_runs


@flow(name="zk0-benchmark", flow_run_name="night", persist_result=False)
def nightly_benchmark(
    sessions: tuple[str, ...] = ("deployments/sessions/demo.toml",),
    benchmarks: dict[str, list[str]] | None = None,
    repeats: int = 3,
    least: float = 1.1,
    ledger: str = "outputs/benchmark/nights.jsonl",
    accept: str | None = None,
) -> None:
    """Measure, compare with the last good night on this machine, and fail where something got worse beyond the noise.

    Args:
        sessions: session files that are run from their start.
        benchmarks: options by name of a script in benchmarks/; unset: train, aggregate and overhead without options.
        repeats: how often each benchmark runs; the noise is estimated from the repeats.
        least: smallest ratio to the last good night's time that counts as worse.
        ledger: the file of all nights.
        accept: a reason to accept tonight as the new reference although something is worse.

    Raises:
        BenchmarkError: something is worse, or could not be measured.
    """
    chosen = {"train": [], "aggregate": [], "overhead": []} if benchmarks is None else benchmarks
    nights = NightlyLedger(Path(ledger)).read()
    began = datetime.now().astimezone().isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="zk0-night-") as folder:
        finished = tuple(nightly.run_pinned_session(config, folder) for config in sessions)
        samples = tuple(
            sample
            for name, options in chosen.items()
            for sample in nightly.run_benchmark(name, options, repeats, folder)
        )
    tonight = NightlyRun(
        started_at=began,
        commit=nightly.git_commit(),
        machine=nightly.this_machine(),
        versions=nightly.library_versions(),
        samples=samples,
        sessions=finished,
        accepted_reason=accept,
    )
    compared = compare_nightly_runs(tonight, nights, least)
    worse = tuple(c.summary() for c in compared if c.outcome == "worse")
    tonight = tonight.model_copy(update={"regressions": worse})
    nightly.show_night(tonight, compared, nights, changed_weights(tonight, nights))
    nightly.append_night(ledger, tonight)
    if worse:
        nightly.emit_regression_event(worse, accept)
        if accept is None:
            raise BenchmarkError(f"{len(worse)} measurement(s) got worse: {'; '.join(worse)}")
