"""Marks the task runs of a killed flow run as Crashed; Prefect itself leaves them Running forever."""

import time
from datetime import UTC, datetime
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, TaskRun
from prefect.states import Crashed

_PAGE_SIZE = 200
_POLL_SECONDS = 1.0


def mark_task_runs_crashed(flow: Any, flow_run: FlowRun, state: Any) -> None:
    """Set every unfinished task run of the flow run to Crashed; a hook for a flow's on_crashed and on_cancellation."""
    ended = datetime.now(UTC)
    with get_client(sync_client=True) as client:
        while unfinished := _unfinished(client, flow_run, ended):
            for task_run in unfinished:
                crashed: State[Any] = Crashed(message="the process of this run was killed")
                client.set_task_run_state(task_run.id, crashed, force=True)
            time.sleep(_POLL_SECONDS)  # the server may still process the last events of the killed process


def _unfinished(client: SyncPrefectClient, flow_run: FlowRun, before: datetime) -> list[TaskRun]:
    """Return at most a page of unfinished task runs; those that started later belong to a Retry of the flow run."""
    of_this_run = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))
    types = TaskRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])
    unfinished = TaskRunFilter(state=TaskRunFilterState(name=None, type=types))
    found = client.read_task_runs(flow_run_filter=of_this_run, task_run_filter=unfinished, limit=_PAGE_SIZE)
    return [run for run in found if run.expected_start_time is None or run.expected_start_time <= before]
