"""A session that runs from its Prefect deployment: task runs and artifacts in the UI, Retry after a kill, stopping."""

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
from prefect.client.schemas.responses import SetStateStatus
from prefect.client.schemas.sorting import TaskRunSort
from prefect.states import Cancelling

from zk0.audit.ledger import Ledger

NO_ROLLOUT = {"rollout.tasks": []}
pytestmark = [
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc"),
    pytest.mark.timeout(900),  # sessions start several processes, each of which imports LeRobot
]
STAGES = ["train round {}", "aggregate round {}", "evaluate round {}", "record round {}"]


def run_id(done: "subprocess.CompletedProcess[str]") -> UUID:
    return UUID(re.search(r"UUID: (\S+)", done.stdout).group(1))


def task_runs(local_prefect: Any, run: UUID) -> list[Any]:
    with local_prefect.client() as client:
        return client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])),
            sort=TaskRunSort.EXPECTED_START_TIME_ASC,
            limit=200,
        )


def running(local_prefect: Any, run: UUID) -> set[str]:
    """Return the names of task runs that have started and not ended."""
    return {r.name for r in task_runs(local_prefect, run) if r.state and not r.state.is_final()}


def wait_until_running(
    local_prefect: Any, run: UUID, output: str, number: int, names: set[str], wait_until: Callable[..., Any]
) -> None:
    """Wait until a task run of round `number` with one of these names runs; ask the server only in that round."""
    wait_until(lambda: list((local_prefect.home / output).glob(f"*/round-{number:03d}/updates")), pause=0.01)
    wait_until(lambda: running(local_prefect, run) & names, pause=0.01)


def logged(local_prefect: Any, task_run: Any) -> list[str]:
    with local_prefect.client() as client:
        found = client.read_logs(LogFilter(task_run_id=LogFilterTaskRunId(any_=[task_run.id])))
    return [line.message for line in found]


def artifacts(local_prefect: Any, run: UUID) -> dict[str, list[Any]]:
    with local_prefect.client() as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run])), limit=200
        )
    by_key: dict[str, list[Any]] = {}
    for artifact in sorted(found, key=lambda a: a.created):
        if artifact.key is not None:
            by_key.setdefault(artifact.key, []).append(artifact)
    return by_key


def folder_of(local_prefect: Any, name: str) -> Path:
    """Return the only session folder in an output folder."""
    (found,) = (local_prefect.home / name).iterdir()
    return found


def digests(folder: Path) -> list[str]:
    return [record.checkpoint.digest for record in Ledger(folder / "ledger.jsonl").read()]


def test_a_session_from_its_deployment(local_prefect: Any, finished: Any) -> None:
    assert finished.returncode == 0, finished.stdout + finished.stderr
    run = run_id(finished)
    with local_prefect.client() as client:
        flow_run = client.read_flow_run(run)
        assert client.read_flow(flow_run.flow_id).name == "zk0"
        assert client.read_deployment(flow_run.deployment_id).name == "federated-session"
    assert flow_run.state.is_completed()
    assert flow_run.work_queue_name == "default"
    folder = folder_of(local_prefect, "uninterrupted")
    assert [r.round for r in Ledger(folder / "ledger.jsonl").read()] == [0, 1, 2]
    assert (folder / "models" / "checkpoint_round_2" / "model.safetensors").is_file()
    assert (folder / "report.html").is_file()


def test_rounds_hold_their_stages(local_prefect: Any, finished: Any) -> None:
    runs = task_runs(local_prefect, run_id(finished))
    assert {r.state_name for r in runs} == {"Completed"}
    names = [r.name for r in runs]
    assert len(names) == len(set(names)), "every task run has its own name"
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


def test_each_client_is_shown_in_its_round(local_prefect: Any, finished: Any) -> None:
    of = {r.name: r for r in task_runs(local_prefect, run_id(finished))}
    folder = folder_of(local_prefect, "uninterrupted")
    for record in Ledger(folder / "ledger.jsonl").read()[1:]:
        train, evaluate = of[f"train round {record.round}"], of[f"clients evaluate round {record.round}"]
        shown = [(train, u.client, "trains", f"loss {u.metrics.policy_loss:.4f}, 40 steps") for u in record.updates]
        scores = record.client_evaluation.scores
        shown += [(evaluate, s.client, "evaluates", f"policy loss {s.score.policy_loss:.4f}") for s in scores]
        assert len(shown) == 4
        for parent, client, does, numbers in shown:
            run = of[f"{client} {does}, round {record.round}"]
            assert [p.id for p in run.task_inputs["__parents__"]] == [parent.id]
            assert run.state.is_completed()
            assert numbers in run.state.message
            assert parent.start_time <= run.start_time < run.end_time <= parent.end_time
            assert run.total_run_time == run.end_time - run.start_time
            (line,) = logged(local_prefect, run)
            assert re.fullmatch(rf"round {record.round}: {client}: {re.escape(numbers)}.*", line)


def test_artifacts_of_a_session(local_prefect: Any, finished: Any) -> None:
    found = artifacts(local_prefect, run_id(finished))
    assert found.keys() >= {"session-progress", "round-losses", "benchmark", "session-report", "rollout-video"}
    (progress,) = found["session-progress"]
    assert float(progress.data) == 100.0
    of = {r.name: r for r in task_runs(local_prefect, run_id(finished))}
    assert progress.created < of["clients check and join"].start_time, "something to see before the clients have joined"
    losses, timings = (json.loads(found[key][-1].data) for key in ("round-losses", "benchmark"))
    assert [row["round"] for row in losses] == [0, 1, 2]
    assert {"lifter", "placer", "refused", "reason"} <= losses[0].keys(), "the UI shows columns of the first row only"
    assert [row["lifter"] is None for row in losses] == [True, False, False]
    assert {"train", "aggregate"} <= timings[0].keys()
    (report,) = found["session-report"]
    assert "data:image/png;base64," in report.data
    videos = [
        re.search(r"evaluate/round_(\d)/\w+/rollout_\d{8}_\d{6}\.mp4", video.data) for video in found["rollout-video"]
    ]
    assert {video and video[1] for video in videos} == {"0", "2"}, "before and after training"
    titles = [re.match(r"\[(.*): (no )?success\]", video.data) for video in found["rollout-video"]]
    assert {title and title[1] for title in titles} == {f"lift-red, round {n}, seed 9000" for n in (0, 2)}


def test_a_setting_that_does_not_exist(local_prefect: Any) -> None:
    run = local_prefect.start_session(local_prefect.overrides("never", **{"training.local_step": 3}))
    state = local_prefect.final_state(run)
    assert state.is_failed()
    assert "training.local_step: unknown setting" in state.message
    assert "\n" not in state.message
    assert not (local_prefect.home / "never").exists()


def test_retry_resumes_at_the_killed_round(local_prefect: Any, finished: Any, wait_until: Callable[..., Any]) -> None:
    """Kill the flow while clients train in round 2: Retry uses the same folder, trains only round 2, same digests."""
    run = local_prefect.start_session(local_prefect.overrides("killed", **NO_ROLLOUT))
    trained = {f"{name} trains, round 2" for name in ("lifter", "placer")}
    wait_until_running(local_prefect, run, "killed", 2, trained, wait_until)
    local_prefect.kill_flow(run)
    crashed = local_prefect.final_state(run)
    assert crashed.is_crashed()
    wait_until(lambda: not running(local_prefect, run), 60)
    folder = folder_of(local_prefect, "killed")
    states = {r.name: r.state.type for r in task_runs(local_prefect, run)}
    assert states["lifter trains, round 1"] == StateType.COMPLETED
    assert states["placer trains, round 2"] == StateType.CRASHED
    before = (folder / "ledger.jsonl").read_bytes()
    assert before.count(b"\n") == 2, "killed before round 2 was finished"
    wait_until(
        lambda: not [c for c in local_prefect.remaining_processes().values() if "zk0.federation.engines.worker" in c],
        30,
    )

    assert local_prefect.prefect("flow-run", "retry", str(run)).returncode == 0
    wait_until(lambda: not local_prefect.state(run).is_crashed())
    assert local_prefect.final_state(run).is_completed()
    assert folder_of(local_prefect, "killed") == folder
    assert (folder / "ledger.jsonl").read_bytes().startswith(before)
    assert digests(folder) == digests(folder_of(local_prefect, "uninterrupted"))
    for client in ("lifter", "placer"):
        log = (folder / "clients" / client / "client.log").read_text(encoding="utf-8")
        assert log.count("round 1 from") == 1, "a finished round was trained again"
        assert log.count("round 2 from") >= 1
    assert {r.state_name for r in task_runs(local_prefect, run)} == {"Completed", "Crashed"}
    assert float(artifacts(local_prefect, run)["session-progress"][-1].data) == 100.0


@pytest.mark.slow
def test_a_killed_worker_is_started_again(local_prefect: Any, wait_until: Callable[..., Any]) -> None:
    run = local_prefect.start_session(local_prefect.overrides("workerless", **NO_ROLLOUT))
    wait_until_running(local_prefect, run, "workerless", 1, {"placer trains, round 1"}, wait_until)
    local_prefect.kill_worker()
    assert local_prefect.final_state(run).is_crashed()
    assert "the Prefect worker ended with -9" in local_prefect.output()
    assert "starting another worker" in local_prefect.output()
    wait_until(
        lambda: not [c for c in local_prefect.remaining_processes().values() if "zk0.federation.engines.worker" in c],
        30,
    )
    next_run = local_prefect.start_session(local_prefect.overrides("never", **{"training.local_step": 3}))
    assert "unknown setting" in local_prefect.final_state(next_run).message, "the new worker runs what comes next"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stopped_in_a_round_or_killed(new_local_prefect: Any, wait_until: Callable[..., Any]) -> None:
    """No process remains; the next `zk0 ui` can retry the session, and its concurrency limit is free."""
    new_local_prefect.start()
    run = new_local_prefect.start_session(new_local_prefect.overrides("stopped", **NO_ROLLOUT))
    wait_until(lambda: {n for n in running(new_local_prefect, run) if n.startswith("round ")}, pause=0.2)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # in a round, and then with nothing to do
        assert new_local_prefect.stop(number) == 0
        assert new_local_prefect.remaining_processes() == {}
        assert (f"prefect flow-run retry {run}" in new_local_prefect.output()) == (number == signal.SIGINT)
        new_local_prefect.start()
    assert new_local_prefect.state(run).is_crashed()
    new_local_prefect.retry(run)
    wait_until(lambda: not new_local_prefect.state(run).is_crashed())
    assert new_local_prefect.final_state(run).is_completed()
    os.kill(new_local_prefect.popen.pid, signal.SIGKILL)
    new_local_prefect.popen.wait()
    wait_until(lambda: new_local_prefect.remaining_processes() == {}, 60)


@pytest.mark.slow
def test_a_cancelled_session_leaves_no_process(local_prefect: Any, wait_until: Callable[..., Any]) -> None:
    run = local_prefect.start_session(
        local_prefect.overrides("cancelled", **NO_ROLLOUT, **{"training.local_steps": 150, "rounds": 1})
    )
    wait_until_running(local_prefect, run, "cancelled", 1, {"placer trains, round 1"}, wait_until)
    running_now = local_prefect.remaining_processes().items()
    mine = {
        pid for pid, command in running_now if "zk0.federation.engines.worker" in command or "prefect.engine" in command
    }
    assert len(mine) >= 2
    with local_prefect.client() as client:  # the command would import for so long that the round might end
        assert client.set_flow_run_state(run, Cancelling()).status == SetStateStatus.ACCEPT
    wait_until(lambda: local_prefect.state(run).is_cancelled(), 120)
    wait_until(lambda: not running(local_prefect, run), 60)
    wait_until(lambda: not mine & local_prefect.remaining_processes().keys(), 60)
    folder = folder_of(local_prefect, "cancelled")
    assert [r.round for r in Ledger(folder / "ledger.jsonl").read()] == [0]
    before = (folder / "ledger.jsonl").read_bytes()
    local_prefect.retry(run)
    wait_until(lambda: not local_prefect.state(run).is_cancelled())
    assert local_prefect.final_state(run).is_completed()
    assert (folder / "ledger.jsonl").read_bytes().startswith(before)
    assert [r.round for r in Ledger(folder / "ledger.jsonl").read()] == [0, 1]
