"""The log lines of failed runs in the Prefect UI."""

from typing import Any
from uuid import UUID

import pytest

from zk0.errors import DatasetError


@pytest.mark.parametrize(
    ("error", "has_traceback"),
    [(DatasetError("two faults:\n  no camera\n  no joint"), False), (KeyError("a bug"), True)],
)
def test_only_bugs_have_a_traceback(prefect_api: str, error: Exception, has_traceback: bool) -> None:
    from prefect import flow, task
    from prefect.client.orchestration import get_client
    from prefect.runtime import flow_run
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tasks.prefect_private import flush_logs_and_events

    runs: list[str] = []

    @task
    def failing() -> None:
        raise error

    @flow
    def calling() -> None:
        runs.append(flow_run.id)
        failing()

    with temporary_settings({PREFECT_API_URL: prefect_api}):
        with pytest.raises(type(error)):
            calling()
        flush_logs_and_events()
        with get_client(sync_client=True) as client:
            logged = [one.message for one in client.read_logs(_of_run(runs[0]))]
    lines = [line for line in logged if "exception" in line and not line.startswith("Finished in state")]
    assert len(lines) == 2, "one of the task run, one of the flow run"
    assert all(("Traceback" in line) == has_traceback for line in lines)
    if not has_traceback:
        assert all("DatasetError: two faults:\n  no camera\n  no joint" in line for line in lines)


def _of_run(run: str) -> Any:
    from prefect.client.schemas.filters import LogFilter

    return LogFilter.model_validate({"flow_run_id": {"any_": [UUID(run)]}})
