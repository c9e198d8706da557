"""Prefect retries only what may succeed later."""

import asyncio
import errno
import importlib
import pkgutil

import pytest
from prefect import Task
from prefect.states import exception_to_failed_state

import flows.federated_session
import tasks
from tasks.retry import is_transient
from zk0.errors import CheckpointError, DatasetError, RoundIncomplete, TransientError, UpdateError

MODULES = (
    flows.federated_session,
    *(importlib.import_module(f"tasks.{module.name}") for module in pkgutil.iter_modules(tasks.__path__)),
)


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (TransientError("the disk was busy"), True),
        (RoundIncomplete("1 good update, expected 2"), True),
        (DatasetError("episode 3 cannot be decoded"), False),
        (UpdateError("NaN"), False),
        (OSError(errno.ENOSPC, "disk full"), False),
        (OSError(errno.EROFS, "read-only"), False),
        (OSError(errno.ESTALE, "stale file handle"), True),
        (caused_by(CheckpointError("cannot be read"), OSError(errno.EIO, "input/output error")), True),
        (caused_by(CheckpointError("another digest"), ValueError("no disk")), False),
        (ZeroDivisionError("a bug"), False),
    ],
)
def test_which_errors_are_retried(error: Exception, retried: bool) -> None:
    async def decide() -> bool:
        return await is_transient(None, None, await exception_to_failed_state(error))

    assert asyncio.run(decide()) is retried


def test_no_task_retries_on_another_error() -> None:
    found = {name: t for module in MODULES for name, t in vars(module).items() if isinstance(t, Task)}
    assert len(found) >= 25
    careless = [name for name, t in found.items() if t.retries and t.retry_condition_fn is not is_transient]
    assert careless == []
    without = {name for name, t in found.items() if not t.retries and t.retry_condition_fn is None}
    assert without == {
        "federated_round",  # its steps are retried
        "check_datasets_disjoint", "pool_statistics",  # pure functions
        # Prefect's client itself retries its requests
        "show_findings", "show_night", "update_round_artifacts",
    }  # fmt: skip
    assert found["train_clients"].retry_condition_fn is is_transient
