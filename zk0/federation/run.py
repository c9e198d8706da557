"""A run on the SuperLink whose ServerApp is this very process: begun, taken and ended without another one."""

import fcntl
import hashlib
import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.proto.control_pb2 import StartRunRequest, StartRunResponse, StopRunRequest, StopRunResponse
from flwr.proto.fab_pb2 import Fab
from loguru import logger

from zk0.errors import FederationError, TransientError
from zk0.federation.api import Api, Endpoint
from zk0.federation.task import SERVER_APP, Task, acquire

_PATIENCE_SECONDS = 50.0
"""A SuperLink that is started again within this time is not noticed; after a minute it gives a silent task up."""
_BUNDLE = """[project]
name = "zk0"
version = "1.0.0"
description = "Holds no code: a node runs the zk0 that is installed on it."
[tool.flwr.app]
publisher = "zk0"
[tool.flwr.app.components]
serverapp = "zk0.federation.run:none"
clientapp = "zk0.federation.client_app:app"
"""


@contextmanager
def begun_run(endpoint: Endpoint) -> Iterator[Task]:
    """The task of a new run, until the block ends.

    Raises:
        NoAnswer: there is no SuperLink.
    """
    with Api(endpoint) as control:
        token = _begin(endpoint, control)
    with Task(endpoint, token, SERVER_APP, _PATIENCE_SECONDS) as task:
        yield task


def stop_run(endpoint: Endpoint, run: int) -> None:
    """What is on its way in a run is deleted, and a node that comes with an answer is told that the run is over."""
    with Api(endpoint) as control:
        _stop(control, run)


def _begin(endpoint: Endpoint, control: Api) -> str:
    """The token of a run that has just been started."""
    bundle = _bundle()
    asked = StartRunRequest(fab=Fab(hash_str=hashlib.sha256(bundle).hexdigest(), content=bundle))
    with _alone(endpoint):
        run = control.call("/v1/control/start-run", asked, StartRunResponse, _PATIENCE_SECONDS).run_id
        while (taken := acquire(control, SERVER_APP)) is not None:
            token, found = taken
            if found.run_id == run:
                return token
            logger.info("ending run {}, which a killed session left behind", found.run_id)
            _stop(control, int(found.run_id))
    raise FederationError(
        f"run {run} was taken by another process; a SuperLink for zk0 is started with --isolation process"
    )


def _stop(control: Api, run: int) -> None:
    try:
        control.call("/v1/control/stop-run", StopRunRequest(run_id=run), StopRunResponse)
    except (FederationError, TransientError) as e:
        logger.debug("run {} could not be stopped: {}", run, e)  # it has ended already, or the SuperLink has


@contextmanager
def _alone(endpoint: Endpoint) -> Iterator[None]:
    """No other session of this machine takes a task between our start and our taking."""
    if endpoint.secret is None:
        yield
        return
    with endpoint.secret.open("rb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _bundle() -> bytes:
    """The app of a run, as Flower asks for one: a name, and no code."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        bundle.writestr(zipfile.ZipInfo("pyproject.toml", (2024, 10, 1, 0, 0, 0)), _BUNDLE)
    return buffer.getvalue()
