"""What a killed run leaves behind in the UI."""

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

_PAGE = 200
_PAUSE_SECONDS = 1.0


def close_task_runs(flow: Any, flow_run: FlowRun, state: Any) -> None:
    """Task runs that a killed process left unfinished are called Crashed; Prefect calls them Running for ever."""
    ended = datetime.now(UTC)
    with get_client(sync_client=True) as client:
        while left := _unfinished(client, flow_run, ended):
            for task_run in left:
                crashed: State[Any] = Crashed(message="the process of this run was killed")
                client.set_task_run_state(task_run.id, crashed, force=True)
            time.sleep(_PAUSE_SECONDS)  # the server may still be writing down what the process told it last


def _unfinished(client: SyncPrefectClient, flow_run: FlowRun, before: datetime) -> list[TaskRun]:
    """At most a page; those that began later are of a Retry."""
    mine = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))
    types = TaskRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])
    unfinished = TaskRunFilter(state=TaskRunFilterState(name=None, type=types))
    found = client.read_task_runs(flow_run_filter=mine, task_run_filter=unfinished, limit=_PAGE)
    return [one for one in found if one.expected_start_time is None or one.expected_start_time <= before]
