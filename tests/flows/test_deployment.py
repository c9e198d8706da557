"""zk0 under Prefect: a session from its deployment, what is shown of it, a wrong setting, a killed run, a full stop."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterTaskRunId,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import TaskRunSort

from zk0.ledger import Ledger

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
STAGES = ["train round {}", "aggregate round {}", "evaluate round {}", "record round {}"]


def run_id(done: "subprocess.CompletedProcess[str]") -> UUID:
    return UUID(re.search(r"UUID: (\S+)", done.stdout).group(1))


def task_runs(stack: Any, run: UUID) -> list[Any]:
    with stack.client() as client:
        return client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])),
            sort=TaskRunSort.EXPECTED_START_TIME_ASC,
            limit=200,
        )


def running(stack: Any, run: UUID) -> set[str]:
    """Names of task runs that have begun and not ended."""
    return {r.name for r in task_runs(stack, run) if r.state and not r.state.is_final()}


def logged(stack: Any, task_run: Any) -> list[str]:
    with stack.client() as client:
        found = client.read_logs(LogFilter(task_run_id=LogFilterTaskRunId(any_=[task_run.id])))
    return [line.message for line in found]


def artifacts(stack: Any, run: UUID) -> dict[str, list[Any]]:
    with stack.client() as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run])), limit=200
        )
    by_key: dict[str, list[Any]] = {}
    for artifact in sorted(found, key=lambda a: a.created):
        if artifact.key is not None:
            by_key.setdefault(artifact.key, []).append(artifact)
    return by_key


def folder_of(stack: Any, name: str) -> Path:
    """The one session folder in an output folder."""
    (found,) = (stack.home / name).iterdir()
    return found


def digests(folder: Path) -> list[str]:
    return [record.checkpoint.digest for record in Ledger(folder / "ledger.jsonl").read()]


def test_a_session_from_its_deployment(stack: Any, finished: Any) -> None:
    assert finished.returncode == 0, finished.stdout + finished.stderr
    run = run_id(finished)
    with stack.client() as client:
        flow_run = client.read_flow_run(run)
        assert client.read_flow(flow_run.flow_id).name == "zk0"
        assert client.read_deployment(flow_run.deployment_id).name == "federated-session"
    assert flow_run.state.is_completed()
    assert flow_run.work_queue_name == "default"
    folder = folder_of(stack, "undisturbed")
    assert [r.round for r in Ledger(folder / "ledger.jsonl").read()] == [0, 1, 2]
    assert (folder / "models" / "checkpoint_round_2" / "model.safetensors").is_file()
    assert (folder / "report.html").is_file()


def test_rounds_hold_their_stages(stack: Any, finished: Any) -> None:
    runs = task_runs(stack, run_id(finished))
    assert {r.state_name for r in runs} == {"Completed"}
    names = [r.name for r in runs]
    assert len(names) == len(set(names)), "every task run tells itself from all others"
    of = {r.name: r for r in runs}
    for number in (1, 2):
        round_id = of[f"round {number}"].id
        for stage in (s.format(number) for s in STAGES):
            parents = of[stage].task_inputs["__parents__"]
            assert [p.id for p in parents] == [round_id]
    assert "__parents__" not in of["round 1"].task_inputs
    assert {
        "evaluate round 0",
        "roll out lift-red round 0",
        "roll out lift-red round 2",
        "check sim:lift-red",
        "build tiny",
    } <= of.keys()


def test_each_client_is_shown_in_its_round(stack: Any, finished: Any) -> None:
    of = {r.name: r for r in task_runs(stack, run_id(finished))}
    folder = folder_of(stack, "undisturbed")
    for record in Ledger(folder / "ledger.jsonl").read()[1:]:
        train, judge = of[f"train round {record.round}"], of[f"clients evaluate round {record.round}"]
        shown = [(train, u.client, "trains", f"loss {u.metrics.policy_loss:.4f}, 40 steps") for u in record.updates]
        scores = record.client_evaluation.scores
        shown += [(judge, s.client, "judges", f"policy loss {s.score.policy_loss:.4f}") for s in scores]
        assert len(shown) == 4
        for within, client, does, said in shown:
            run = of[f"{client} {does}, round {record.round}"]
            assert [p.id for p in run.task_inputs["__parents__"]] == [within.id]
            assert run.state.is_completed()
            assert said in run.state.message
            assert within.start_time <= run.start_time < run.end_time <= within.end_time
            assert run.total_run_time == run.end_time - run.start_time
            (line,) = logged(stack, run)
            assert re.fullmatch(rf"round {record.round}: {client}: {re.escape(said)}.*", line)


def test_artifacts_of_a_session(stack: Any, finished: Any) -> None:
    found = artifacts(stack, run_id(finished))
    assert found.keys() >= {"session-progress", "round-losses", "benchmark", "session-report", "rollout-video"}
    (progress,) = found["session-progress"]
    assert float(progress.data) == 100.0
    losses, timings = (json.loads(found[key][-1].data) for key in ("round-losses", "benchmark"))
    assert [row["round"] for row in losses] == [0, 1, 2]
    assert {"lifter", "placer", "refused", "why"} <= losses[0].keys(), "the UI shows the columns of the first row alone"
    assert [row["lifter"] is None for row in losses] == [True, False, False]
    assert {"train", "aggregate"} <= timings[0].keys()
    (report,) = found["session-report"]
    assert "data:image/png;base64," in report.data
    (video,) = found["rollout-video"]
    assert re.search(r"evaluate/round_2/\w+/rollout_\d{8}_\d{6}\.mp4", video.data)


def test_a_setting_that_does_not_exist(stack: Any) -> None:
    run = stack.begin(stack.overrides("never", **{"training.local_step": 3}))
    state = stack.ended(run)
    assert state.is_failed()
    assert "training.local_step: unknown setting" in state.message
    assert "\n" not in state.message
    assert not (stack.home / "never").exists()


def test_retry_goes_on_at_the_killed_round(stack: Any, finished: Any, wait_until: Callable[..., Any]) -> None:
    """SIGKILL while clients train in round 2: same run, same folder, round 1 not trained again, same digests."""
    run = stack.begin(stack.overrides("killed"))
    wait_until(lambda: list((stack.home / "killed").glob("*/round-002/updates")), pause=0.01)
    wait_until(lambda: running(stack, run) & {f"{name} trains, round 2" for name in ("lifter", "placer")}, pause=0.01)
    stack.kill_flow(run)
    crashed = stack.ended(run)
    assert crashed.is_crashed()
    wait_until(lambda: not running(stack, run), 60)
    folder = folder_of(stack, "killed")
    there = {r.name: r.state.type for r in task_runs(stack, run)}
    assert there["lifter trains, round 1"] == StateType.COMPLETED
    assert there["placer trains, round 2"] == StateType.CRASHED
    before = (folder / "ledger.jsonl").read_bytes()
    assert before.count(b"\n") == 2, "killed before round 2 was finished"
    wait_until(lambda: not [c for c in stack.left_behind().values() if "zk0.federation.worker" in c], 30)

    assert stack.prefect("flow-run", "retry", str(run)).returncode == 0
    wait_until(lambda: not stack.state(run).is_crashed())
    assert stack.ended(run).is_completed()
    assert folder_of(stack, "killed") == folder
    assert (folder / "ledger.jsonl").read_bytes().startswith(before)
    assert digests(folder) == digests(folder_of(stack, "undisturbed"))
    for client in ("lifter", "placer"):
        log = (folder / "clients" / client / "client.log").read_text(encoding="utf-8")
        assert log.count("round 1 from") == 1, "a finished round was trained again"
        assert log.count("round 2 from") >= 1
    assert {r.state_name for r in task_runs(stack, run)} == {"Completed", "Crashed"}
    assert float(artifacts(stack, run)["session-progress"][-1].data) == 100.0


@pytest.mark.slow
def test_a_killed_worker_is_started_again(stack: Any, wait_until: Callable[..., Any]) -> None:
    run = stack.begin(stack.overrides("workerless"))
    wait_until(lambda: "placer trains, round 1" in running(stack, run), pause=0.01)
    stack.kill_worker()
    assert stack.ended(run).is_crashed()
    assert "the Prefect worker ended with -9" in stack.said()
    assert "starting another one" in stack.said()
    wait_until(lambda: not [c for c in stack.left_behind().values() if "zk0.federation.worker" in c], 30)
    assert stack.prefect("flow-run", "retry", str(run)).returncode == 0
    wait_until(lambda: not stack.state(run).is_crashed())
    assert stack.ended(run).is_completed()
    assert [r.round for r in Ledger(folder_of(stack, "workerless") / "ledger.jsonl").read()] == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_in_a_round(new_stack: Any, wait_until: Callable[..., Any], number: int) -> None:
    """Nothing is left running, the session can be taken up by the next stack, and blocks nobody."""
    new_stack.start()
    run = new_stack.begin(new_stack.overrides("stopped"))
    wait_until(lambda: list((new_stack.home / "stopped").glob("*/round-001/updates")), pause=0.01)
    assert new_stack.stop(number) == 0
    assert new_stack.left_behind() == {}
    assert f"prefect flow-run retry {run}" in new_stack.said()
    new_stack.start()
    assert new_stack.state(run).is_crashed()
    assert new_stack.prefect("flow-run", "retry", str(run)).returncode == 0
    wait_until(lambda: not new_stack.state(run).is_crashed())
    assert new_stack.ended(run).is_completed()


@pytest.mark.slow
def test_a_killed_stack_leaves_nothing(new_stack: Any, wait_until: Callable[..., Any]) -> None:
    new_stack.start()
    os.kill(new_stack.popen.pid, signal.SIGKILL)
    new_stack.popen.wait()
    wait_until(lambda: new_stack.left_behind() == {}, 60)


@pytest.mark.slow
def test_a_cancelled_session_leaves_no_process(stack: Any, wait_until: Callable[..., Any]) -> None:
    run = stack.begin(stack.overrides("cancelled", **{"training.local_steps": 500}))  # a round outlasts the command
    wait_until(lambda: "placer trains, round 1" in running(stack, run), pause=0.01)
    begun = stack.left_behind().items()
    mine = {pid for pid, command in begun if "zk0.federation.worker" in command or "prefect.engine" in command}
    assert len(mine) >= 2
    assert stack.prefect("flow-run", "cancel", str(run)).returncode == 0
    wait_until(lambda: stack.state(run).is_cancelled(), 120)
    wait_until(lambda: not running(stack, run), 60)
    wait_until(lambda: not mine & stack.left_behind().keys(), 60)
    folder = folder_of(stack, "cancelled")
    assert [r.round for r in Ledger(folder / "ledger.jsonl").read()] == [0]
    before = (folder / "ledger.jsonl").read_bytes()
    assert stack.prefect("flow-run", "retry", str(run)).returncode == 0
    wait_until(lambda: not stack.state(run).is_cancelled())
    assert stack.ended(run).is_completed()
    assert (folder / "ledger.jsonl").read_bytes().startswith(before)
    assert [r.round for r in Ledger(folder / "ledger.jsonl").read()] == [0, 1, 2]
