"""Runs on a SuperLink whose ServerApp is this process: started, acquired and ended here, without another process."""

import fcntl
import hashlib
import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

from loguru import logger

from zk0.errors import FederationError, TransientError
from zk0.federation.flower.api_client import ApiClient, Endpoint
from zk0.federation.flower.private_api import SERVER_APP, START_RUN, STOP_RUN, Fab
from zk0.federation.flower.runtime_task import RuntimeTask, acquire_task

_RETRY_SECONDS = 50.0
"""A restart of the SuperLink within this time does not end the run; it ends a task after a minute without heartbeat."""
_APP_BUNDLE = """[project]
name = "zk0"
version = "1.0.0"
description = "Contains no code: a node runs the zk0 that is installed on it."
[tool.flwr.app]
publisher = "zk0"
[tool.flwr.app.components]
serverapp = "zk0.federation.flower.flower_run:none"
clientapp = "zk0.federation.protocol.client_app:flower_client_app"
"""


@contextmanager
def open_run(endpoint: Endpoint) -> Iterator[RuntimeTask]:
    """Start a run and yield its ServerApp task; the run ends with the block.

    Raises:
        ServerUnavailable: the SuperLink does not answer.
    """
    with ApiClient(endpoint) as control:
        token = _start_run(endpoint, control)
    with RuntimeTask(endpoint, token, SERVER_APP, _RETRY_SECONDS) as task:
        yield task


def stop_run(endpoint: Endpoint, run_id: int) -> None:
    """Stop a run: the SuperLink deletes its messages and rejects replies to them."""
    with ApiClient(endpoint) as control:
        _stop_run(control, run_id)


def _start_run(endpoint: Endpoint, control: ApiClient) -> str:
    """Start a run, and return the token of its task. Runs of sessions that were killed are stopped."""
    bundle = _app_bundle()
    fab = Fab(hash_str=hashlib.sha256(bundle).hexdigest(), content=bundle)
    with _exclusive(endpoint):
        run_id = control.call(START_RUN, retry_seconds=_RETRY_SECONDS, fab=fab).run_id
        while (acquired := acquire_task(control, SERVER_APP)) is not None:
            token, task = acquired
            if task.run_id == run_id:
                return token
            logger.info("stopping run {} of a session that was killed", task.run_id)
            _stop_run(control, int(task.run_id))
    raise FederationError(
        f"another process acquired run {run_id}; a SuperLink for zk0 is started with --isolation process"
    )


def _stop_run(control: ApiClient, run_id: int) -> None:
    try:
        control.call(STOP_RUN, run_id=run_id)
    except (FederationError, TransientError) as e:
        logger.debug("run {} could not be stopped: {}", run_id, e)  # it or the SuperLink has ended already


@contextmanager
def _exclusive(endpoint: Endpoint) -> Iterator[None]:
    """Hold a lock, so that no other session of this machine acquires the task of the run that this one starts."""
    if endpoint.secret is None:
        yield
        return
    with endpoint.secret.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _app_bundle() -> bytes:
    """Return the Flower App Bundle that a run requires: names, and no code."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        bundle.writestr(zipfile.ZipInfo("pyproject.toml", (2024, 10, 1, 0, 0, 0)), _APP_BUNDLE)
    return buffer.getvalue()
