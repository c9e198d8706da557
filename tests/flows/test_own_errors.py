"""The log lines of failed runs in the Prefect UI."""

from pathlib import Path
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


def test_retry_of_a_run_with_a_broken_dataset_ends_at_once_with_the_same_line(prefect_api: str, tmp_path: Path) -> None:
    """Prefect shows its button Retry on every failed run."""
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.states import AwaitingRetry

    from flows.federated_session import federated_session

    parameters = {
        "config": "smoke",
        "overrides": {
            "output_dir": str(tmp_path),
            "clients": [{"name": name, "dataset": f"local:{tmp_path / name}"} for name in ("a", "b")],
        },
    }
    messages = []
    with temporary_settings({PREFECT_API_URL: prefect_api}), get_client(sync_client=True) as client:
        run = client.create_flow_run(federated_session, parameters=parameters)
        for _ in range(2):
            with pytest.raises(DatasetError):
                run_flow(federated_session, flow_run=client.read_flow_run(run.id), parameters=parameters)
            ended = client.read_flow_run(run.id)
            assert ended.state is not None
            messages.append(ended.state.message or "")
            client.set_flow_run_state(run.id, AwaitingRetry())
    assert ended.run_count == 2
    assert messages[0] == messages[1]
    assert messages[0].startswith("Flow run encountered an exception: DatasetError: ")
    assert all(f"local:{tmp_path / name} (client {name})" in messages[0] for name in ("a", "b"))
    assert "Traceback" not in messages[0]
    assert list(tmp_path.iterdir()) == [], "nothing was made for the session"


def _of_run(run: str) -> Any:
    from prefect.client.schemas.filters import LogFilter

    return LogFilter.model_validate({"flow_run_id": {"any_": [UUID(run)]}})
