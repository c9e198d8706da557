"""The nightly benchmark as a flow: measured, compared, recorded; a regression fails it and emits an event."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.nightly import this_machine
from tasks.subprocesses import run_zk0
from zk0.errors import BenchmarkError
from zk0.nightly.nightly_ledger import BenchmarkSample, NightlyLedger, NightlyRun

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
QUICK = {"aggregate": ["--clients", "2", "--parameters", "100000", "--repeats", "2"]}
NAME = "aggregate: zk0 / copy"
RATIOS = ["aggregate: zk0 mean / copy", NAME, "aggregate: zk0 verify / copy"]


def test_a_benchmark_that_fails_reports_the_reason() -> None:
    with pytest.raises(BenchmarkError, match=r"^the benchmark ended with 2: .*no benchmark nothing"):
        run_zk0(["bench", "nothing"], "the benchmark", BenchmarkError)


def test_this_machine() -> None:
    here = this_machine()
    assert here.cpu
    assert here.cores >= 1
    assert here == this_machine()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nights(local_prefect: Any, wait_until: Callable[..., Any]) -> None:
    ledger = local_prefect.home / "nights.jsonl"

    def night(**more: Any) -> Any:
        parameters = {"sessions": [], "benchmarks": QUICK, "ledger": str(ledger), "repeats": 2, **more}
        return local_prefect.final_state(local_prefect.run_deployment("zk0-benchmark/nightly", parameters))

    first = night()
    assert first.is_completed(), first.message
    (measured,) = NightlyLedger(ledger).read()
    assert measured.is_reference
    assert [(s.name, len(s.ratios)) for s in measured.samples] == [(name, 2) for name in RATIOS]
    assert measured.machine == this_machine()

    # such small measurements are mostly noise: the night before, one was far faster and the others were far slower
    known = tuple(BenchmarkSample(name=n, ratios=(1e-30, 1.01e-30) if n == NAME else (1e30, 1.01e30)) for n in RATIOS)
    NightlyLedger(ledger).append(measured.model_copy(update={"samples": known}))
    worse = night()
    assert worse.is_failed()
    assert "1 measurement(s) got worse: aggregate: zk0 / copy: " in worse.message
    *_, last = NightlyLedger(ledger).read()
    assert not last.is_reference
    assert last.regressions[0].startswith(NAME)

    def regression_events() -> list[Any]:
        query = {"filter": {"event": {"name": ["zk0.benchmark.regressed"]}}}
        with local_prefect.client() as client:
            return client.request("POST", "/events/filter", json=query).json()["events"]

    (event,) = wait_until(regression_events, 60)
    assert event["payload"]["regressions"] == list(last.regressions)
    with local_prefect.client() as client:
        artifacts = client.read_artifacts(limit=200)
    tables = [json.loads(a.data) for a in artifacts if a.key == "benchmark" and NAME in str(a.data)]
    row = next(r for rows in tables for r in rows if r["outcome"] == "worse")
    assert row["measurement"] == NAME
    assert row["nights before"].count(",") == 1

    accepted = night(accept="the new check costs that")
    assert accepted.is_completed(), accepted.message
    *_, last = NightlyLedger(ledger).read()
    assert last.is_reference
    assert isinstance(last, NightlyRun)
    assert last.regressions
