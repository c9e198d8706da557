"""What a killed run leaves behind in the UI."""

from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Crashed


def close_task_runs(flow: Any, flow_run: FlowRun, state: Any) -> None:
    """Task runs that a killed process left unfinished are called Crashed; Prefect calls them Running for ever."""
    mine = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))
    unfinished = TaskRunFilter(
        state=TaskRunFilterState(name=None, type=TaskRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING]))
    )
    with get_client(sync_client=True) as client:
        for task_run in client.read_task_runs(flow_run_filter=mine, task_run_filter=unfinished, limit=200):
            crashed: State[Any] = Crashed(message="the process of this run was killed")
            client.set_task_run_state(task_run.id, crashed, force=True)
