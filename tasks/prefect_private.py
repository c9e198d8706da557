"""Every interface of Prefect that zk0 uses and that Prefect does not document for its users.

Prefect may change these in any release. So only this module imports them, and `tests/flows/test_prefect_private.py`
checks the installed version against what this module relies on.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from prefect.client.schemas.objects import State, TaskRun, TaskRunResult
from prefect.events.schemas.events import Event
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.logging.loggers import task_run_logger
from prefect.utilities.engine import emit_task_run_state_change_event

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

_FLUSH_TIMEOUT_SECONDS = 10.0


def flush_logs_and_events() -> None:
    """Send the log lines and events that Prefect still holds in its background threads to the server, and stop them.

    Prefect does this at the exit of the interpreter, which is too late where the server ends before this process.
    """
    for service in (APILogWorker, EventsWorker):
        service.drain_all(timeout=_FLUSH_TIMEOUT_SECONDS)


def begin_sqlite_transactions_immediately() -> None:
    """Let the Prefect server of this process take SQLite's write lock at the beginning of each transaction.

    Prefect takes it at the first write. A transaction that reads before it writes then fails with "database is locked"
    if another one has written in between, without waiting: at polls of a worker, and when automations are evaluated. To
    be called before the server starts. Another database than SQLite is left alone.
    """
    from prefect.server.database.configurations import AioSqliteConfiguration
    from prefect.server.database.dependencies import MODELS_DEPENDENCIES
    from prefect.server.utilities.database import get_dialect
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

    class ImmediateSqliteConfiguration(AioSqliteConfiguration):
        @asynccontextmanager
        async def begin_transaction(
            self, session: "AsyncSession", with_for_update: bool = False
        ) -> "AsyncGenerator[AsyncSessionTransaction]":
            async with super().begin_transaction(session, with_for_update=True) as transaction:
                yield transaction

    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    if get_dialect(url).name == "sqlite":
        MODELS_DEPENDENCIES["database_config"] = ImmediateSqliteConfiguration(connection_url=url)


def apply_automation_changes_without_blocking() -> None:
    """Let the Prefect server of this process take over a changed automation beside its other work.

    With SQLite, Prefect's listener blocks the event loop until the change is taken over, which needs a lock that a
    routine on the same loop may hold: the server then never answers again (PrefectHQ/prefect#23055). To be called
    before the server starts. A server with another database has no such listener.
    """
    automations = import_module("prefect.server.events.models.automations")
    unfinished: set[asyncio.Task[Any]] = set()

    def finish(task: asyncio.Task[Any]) -> None:
        unfinished.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            automations.logger.error("An automation was changed, but not taken over: %s", error, exc_info=error)

    def start(change: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(change)
        unfinished.add(task)  # the loop itself refers to its tasks only weakly
        task.add_done_callback(finish)

    vars(automations)["run_coro_as_sync"] = start


def wrap_server_app(wrap: Callable[[Any], Any]) -> None:
    """Let `prefect server start` in this process serve `wrap(application)` instead of its application.

    The application that the server's automations call within this process stays as it is.
    """
    from prefect.server.api import server  # takes seconds, and only the server needs it

    create = server.create_app

    def create_app(*args: Any, **options: Any) -> Any:
        made = create(*args, **options)
        return wrap(made) if options.get("final") else made

    server.create_app = create_app


def nested_task_run(name: str, key: str, parent: TaskRun) -> TaskRun:
    """Return a new task run, nested in `parent`, that no task engine executes.

    Args:
        name: shown in the Prefect UI.
        key: `task_key`, the same for all task runs of one kind.
        parent: the task run that it belongs to.
    """
    return TaskRun(
        id=uuid4(),
        name=name,
        flow_run_id=parent.flow_run_id,
        flow_run_run_count=parent.flow_run_run_count,
        task_key=key,
        dynamic_key=str(uuid4()),
        task_inputs={"__parents__": [TaskRunResult(id=parent.id)]},
        run_count=1,
    )


def emit_state_change(task_run: TaskRun, previous: State[Any] | None, follows: Event | None) -> Event | None:
    """Emit the event from which the server records the current state of a task run, as the task engine does.

    Args:
        task_run: with its new state, and with its times as of that state.
        previous: the state before; None for the first one.
        follows: the event of the state before; the server keeps events in this order.

    Returns the event, which the next one follows.
    """
    assert task_run.state is not None, "a task run enters a state before the event is emitted"
    return emit_task_run_state_change_event(task_run, previous, task_run.state, follows)


def logger_of(task_run: TaskRun) -> "logging.LoggerAdapter[logging.Logger]":
    """Return a logger whose lines the Prefect UI shows with this task run."""
    return task_run_logger(task_run)
