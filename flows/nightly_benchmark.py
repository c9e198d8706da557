"""The nightly benchmark: sessions that never change and measurements side by side, against the last good night."""

import tempfile
from datetime import datetime
from pathlib import Path

from prefect import flow

from tasks import benchmarking
from zk0.errors import BenchmarkError
from zk0.nights import Night, NightLedger
from zk0.regression import changed_weights, compare


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
        sessions: session files that are played from their start.
        benchmarks: options by name of a benchmark in benchmarks/; unset: train, aggregate and overhead without any.
        repeats: how often each benchmark is run; they tell the noise.
        least: a time that is less than so many times longer is not called worse.
        ledger: the record of all nights.
        accept: a reason to take tonight as the new standard although something is worse.

    Raises:
        BenchmarkError: something is worse, or could not be measured.
    """
    asked = {"train": [], "aggregate": [], "overhead": []} if benchmarks is None else benchmarks
    record = NightLedger(Path(ledger))
    nights = record.read()
    began = datetime.now().astimezone().isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="zk0-night-") as folder:
        played = tuple(benchmarking.play(config, folder) for config in sessions)
        samples = tuple(
            sample for name, options in asked.items() for sample in benchmarking.measure(name, options, repeats, folder)
        )
    tonight = Night(
        began_at=began,
        commit=benchmarking.commit(),
        machine=benchmarking.this_machine(),
        versions=benchmarking.versions(),
        samples=samples,
        sessions=played,
        accepted=accept,
    )
    compared = compare(tonight, nights, least)
    worse = tuple(c.told() for c in compared if c.outcome == "worse")
    tonight = tonight.model_copy(update={"regressions": worse})
    benchmarking.show(tonight, compared, nights, changed_weights(tonight, nights))
    benchmarking.keep(ledger, tonight)
    if worse:
        benchmarking.announce(worse, accept)
        if accept is None:
            raise BenchmarkError(f"{len(worse)} measurement(s) got worse: {'; '.join(worse)}")
