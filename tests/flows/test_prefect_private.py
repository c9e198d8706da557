"""The undocumented interfaces of Prefect that zk0 relies on exist as expected, and only one module imports them."""

import ast
import asyncio
import importlib
import inspect
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import prefect
import pytest
from prefect.client.schemas.objects import TaskRun, TaskRunResult
from prefect.events.schemas.events import Event

from tasks import prefect_private

ROOT = Path(__file__).parents[2]
MODULE = "tasks/prefect_private.py"
ALL = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
DOCUMENTED = {
    "prefect",
    "prefect.artifacts",
    "prefect.blocks.system",
    "prefect.cache_policies",
    "prefect.client.orchestration",
    "prefect.client.schemas.filters",
    "prefect.client.schemas.objects",
    "prefect.context",
    "prefect.events",
    "prefect.exceptions",
    "prefect.flow_runs",
    "prefect.futures",
    "prefect.input",
    "prefect.logging",
    "prefect.runtime",
    "prefect.settings",
    "prefect.states",
    "prefect.utilities.annotations",
}
"""Modules of Prefect that its documentation tells users to import; all files of zk0 may use them."""


def changed(what: str, found: object, expected: object) -> str:
    """The message of a failed check: what to look at after an upgrade."""
    return (
        f"Prefect {prefect.__version__} (see pyproject.toml) changed {what}: found {found}, expected {expected}; "
        f"adapt {MODULE}"
    )


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (prefect_private.EventsWorker.drain_all, ["timeout"]),
        (prefect_private.APILogWorker.drain_all, ["timeout"]),
        (
            prefect_private.emit_task_run_state_change_event,
            ["task_run", "initial_state", "validated_state", "follows"],
        ),
        (prefect_private.task_run_logger, ["task_run"]),
    ],
    ids=["EventsWorker.drain_all", "APILogWorker.drain_all", "emit_task_run_state_change_event", "task_run_logger"],
)
def test_signatures(function: Callable[..., Any], expected: list[str]) -> None:
    """The parameters that we pass come first and in our order, and no other one is required."""
    parameters = inspect.signature(function).parameters
    name = f"the parameters of {function.__module__}.{function.__qualname__}"
    assert list(parameters)[: len(expected)] == expected, changed(name, list(parameters), expected)
    required = [p.name for p in parameters.values() if p.default is p.empty and p.kind not in ALL]
    assert set(required) <= set(expected), changed(name, f"required {required}", f"no more than {expected}")


def test_a_state_change_gives_the_event_that_the_next_one_follows() -> None:
    function = prefect_private.emit_task_run_state_change_event
    found = inspect.signature(function).return_annotation
    assert found == Event | None, changed("what emit_task_run_state_change_event returns", found, Event | None)


def test_fields_of_a_task_run() -> None:
    expected = {
        *("id", "name", "flow_run_id", "flow_run_run_count", "task_key", "dynamic_key", "task_inputs", "run_count"),
        *("state", "start_time", "expected_start_time", "end_time", "total_run_time"),
    }
    missing = sorted(expected - TaskRun.model_fields.keys())
    assert missing == [], changed("prefect.client.schemas.objects.TaskRun", f"no {missing}", sorted(expected))
    described = TaskRun.model_fields["task_inputs"].description or ""
    assert "__parents__" in described, changed("how a task run names its parent", described, "the key __parents__")


def test_a_nested_task_run_names_its_parent() -> None:
    parent = TaskRun(task_key="round", dynamic_key="1", flow_run_run_count=2)
    made = prefect_private.nested_task_run("arm-1 trains", "client", parent)
    assert made.task_inputs == {"__parents__": [TaskRunResult(id=parent.id)]}
    assert (made.name, made.task_key, made.run_count, made.flow_run_run_count) == ("arm-1 trains", "client", 1, 2)
    assert made.id != parent.id


def test_a_worker_labels_its_flow_runs() -> None:
    """The label by which `PrefectServer.mark_runs_crashed` finds the runs of a worker that has ended."""
    module = importlib.import_module("prefect.workers.base")
    message = changed("the label of a flow run's worker", "no prefect.worker.name", "that label")
    assert '"prefect.worker.name"' in inspect.getsource(module), f"{message}, and flows/prefect_local/prefect_server.py"


def test_the_server_command_serves_what_create_app_returns() -> None:
    """`wrap_server_app` replaces the function before the command imports it."""
    module = importlib.import_module("prefect.cli._server_utils")
    source = inspect.getsource(module)
    for expected in ("from prefect.server.api.server import create_app", "app=create_app(final=True"):
        assert expected in source, changed("how `prefect server start` makes its application", "other code", expected)


def test_a_changed_automation_is_taken_over_without_blocking_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """With Prefect's own function, the event loop waits forever for a lock that a routine on the same loop holds."""
    automations = importlib.import_module("prefect.server.events.models.automations")
    source, expected = inspect.getsource(automations), "run_coro_as_sync(automation_changed("
    assert source.count("run_coro_as_sync(") == source.count(expected) == 1, changed(
        "how a server takes over a changed automation", "other code", expected
    )
    monkeypatch.setattr(automations, "run_coro_as_sync", automations.run_coro_as_sync)  # given back after the test
    prefect_private.apply_automation_changes_without_blocking()
    taken_over: list[str] = []

    async def serve() -> None:
        lock = asyncio.Lock()

        async def change(name: str) -> None:
            async with lock:
                taken_over.append(name)
                assert name != "wrong", "this change cannot be taken over"

        async with lock:
            automations.run_coro_as_sync(change("wrong"))
            automations.run_coro_as_sync(change("right"))
            await asyncio.sleep(0)
            assert taken_over == []
        while len(taken_over) < 2:
            await asyncio.sleep(0.01)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "the event loop is blocked"
    assert taken_over == ["wrong", "right"]


def imported(file: Path) -> Iterator[str]:
    """Every module of Prefect that a file imports, late imports too; with the name where that is private."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "prefect")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "prefect":
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name.startswith("_"))


def test_only_one_module_imports_private_interfaces() -> None:
    files = [file for package in ("flows", "tasks") for file in (ROOT / package).rglob("*.py")]
    found = {file.relative_to(ROOT).as_posix(): sorted(set(imported(file)) - DOCUMENTED) for file in files}
    private = {name: modules for name, modules in found.items() if modules}
    assert private.keys() == {MODULE}, f"import these through {MODULE}, or add them to DOCUMENTED: {private}"


def test_a_transaction_of_our_server_that_reads_first_can_write_beside_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Prefect's own configuration, the first one fails at once with "database is locked"."""
    from prefect.server.database.dependencies import MODELS_DEPENDENCIES
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, temporary_settings
    from sqlalchemy import text

    monkeypatch.setitem(MODELS_DEPENDENCIES, "database_config", None)
    with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{tmp_path}/prefect.db"}):
        prefect_private.begin_sqlite_transactions_immediately()
    database = MODELS_DEPENDENCIES["database_config"]
    assert database is not None, changed("how a server finds its database", None, "MODELS_DEPENDENCIES")

    async def both() -> list[Any]:
        engine, has_read = await database.engine(), asyncio.Event()

        async def add(number: int, before: Any, after_read: Any) -> None:
            await before()
            async with await database.session(engine) as session, database.begin_transaction(session):
                await session.execute(text("SELECT * FROM t"))
                await after_read()
                await session.execute(text(f"INSERT INTO t VALUES ({number})"))

        async def signal() -> None:
            has_read.set()
            await asyncio.sleep(0.2)

        async with await database.session(engine) as session, database.begin_transaction(session):
            await session.execute(text("CREATE TABLE t (x INTEGER)"))
        await asyncio.gather(add(1, lambda: asyncio.sleep(0), signal), add(2, has_read.wait, lambda: asyncio.sleep(0)))
        async with await database.session(engine) as session:
            return list((await session.execute(text("SELECT x FROM t ORDER BY x"))).scalars())

    assert asyncio.run(both()) == [1, 2]
