"""Only what may work later is tried again."""

import asyncio

import pytest
from prefect import Task
from prefect.states import exception_to_failed_state

import flows.federated_session
import tasks.data
import tasks.intake
import tasks.judging
import tasks.reporting
import tasks.rounds
from tasks.retry import is_transient
from zk0.errors import DatasetError, RoundIncomplete, TransientError, UpdateError

MODULES = (flows.federated_session, tasks.data, tasks.intake, tasks.judging, tasks.reporting, tasks.rounds)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (TransientError("the disk was busy"), True),
        (RoundIncomplete("1 good update, expected 2"), True),
        (DatasetError("episode 3 cannot be decoded"), False),
        (UpdateError("NaN"), False),
        (OSError("disk full"), False),
        (ZeroDivisionError("ours"), False),
    ],
)
def test_what_is_tried_again(error: Exception, again: bool) -> None:
    async def decide() -> bool:
        return await is_transient(None, None, await exception_to_failed_state(error))

    assert asyncio.run(decide()) is again


def test_no_task_retries_on_anything_else() -> None:
    found = {name: t for module in MODULES for name, t in vars(module).items() if isinstance(t, Task)}
    assert len(found) >= 12
    careless = [name for name, t in found.items() if t.retries and t.retry_condition_fn is not is_transient]
    assert careless == []
    assert found["train_clients"].retry_condition_fn is is_transient
