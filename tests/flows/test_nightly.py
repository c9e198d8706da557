"""A night as a flow: measured, compared, written down; what is worse fails it and is announced."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tasks.benchmarking import this_machine
from tasks.children import run_zk0
from zk0.errors import BenchmarkError
from zk0.nights import Night, NightLedger, Sample

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
QUICK = {"aggregate": ["--clients", "2", "--parameters", "100000", "--repeats", "2"]}
NAME = "aggregate: zk0 / copy"
RATIOS = ["aggregate: zk0 mean / copy", NAME, "aggregate: zk0 verify / copy"]


def test_a_benchmark_that_fails_says_why() -> None:
    with pytest.raises(BenchmarkError, match=r"^the benchmark ended with 2: .*no benchmark nothing"):
        run_zk0(["bench", "nothing"], "the benchmark", BenchmarkError)


def test_where_was_measured() -> None:
    here = this_machine()
    assert here.cpu
    assert here.cores >= 1
    assert here == this_machine()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nights(stack: Any, wait_until: Callable[..., Any]) -> None:
    ledger = stack.home / "nights.jsonl"

    def night(**more: Any) -> Any:
        asked = {"sessions": [], "benchmarks": QUICK, "ledger": str(ledger), "repeats": 3, **more}
        options = [o for k, v in asked.items() for o in ("--param", f"{k}={json.dumps(v)}")]
        return stack.prefect("deployment", "run", "zk0-benchmark/nightly", "--watch", *options)

    first = night()
    assert first.returncode == 0, first.stdout + first.stderr
    (measured,) = NightLedger(ledger).read()
    assert measured.good
    assert [(s.name, len(s.ratios)) for s in measured.samples] == [(name, 3) for name in RATIOS]
    assert measured.machine == this_machine()

    # what so small an average takes is mostly noise: one was far faster the night before, the others far slower
    known = tuple(Sample(name=n, ratios=(1e-6, 1.01e-6) if n == NAME else (1e6, 1.01e6)) for n in RATIOS)
    NightLedger(ledger).append(measured.model_copy(update={"samples": known}))
    worse = night()
    assert worse.returncode == 1
    message = stack.state(UUID(re.search(r"UUID: (\S+)", worse.stdout)[1])).message
    assert "1 measurement(s) got worse: aggregate: zk0 / copy: " in message
    *_, last = NightLedger(ledger).read()
    assert not last.good
    assert last.regressions[0].startswith(NAME)

    def announced() -> list[Any]:
        asked = {"filter": {"event": {"name": ["zk0.benchmark.regressed"]}}}
        with stack.client() as client:
            return client.request("POST", "/events/filter", json=asked).json()["events"]

    (event,) = wait_until(announced, 60)
    assert event["payload"]["regressions"] == list(last.regressions)
    with stack.client() as client:
        artifacts = client.read_artifacts(limit=200)
    tables = [json.loads(a.data) for a in artifacts if a.key == "benchmark" and NAME in str(a.data)]
    row = next(r for rows in tables for r in rows if r["outcome"] == "worse")
    assert row["measurement"] == NAME
    assert row["nights before"].count(",") == 1

    accepted = night(accept="the new check costs that")
    assert accepted.returncode == 0, accepted.stdout
    *_, last = NightLedger(ledger).read()
    assert last.good
    assert isinstance(last, Night)
    assert last.regressions
