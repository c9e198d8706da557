"""A Prefect server with a worker and the deployments of prefect.yaml on this machine: what `zk0 ui` runs."""

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from flows.prefect_local.api_key import read_or_make_api_key
from flows.prefect_local.prefect_process import (
    CommandEnvironment,
    PrefectProcess,
    run_prefect,
    signals_ignored,
    start_prefect,
)
from flows.prefect_local.prefect_server import PrefectServer
from flows.prefect_local.restarting_worker import RestartingWorker
from flows.prefect_local.temporary_server import server_environment, server_on_port, wait_until_ready
from zk0.errors import SettingsError
from zk0.storage.log_rotation import rotate_log

POOL = "gpu"
_WORKER_START_TIMEOUT_SECONDS = 120.0
_WORKER_STOP_TIMEOUT_SECONDS = 40.0  # Prefect gives a flow 30 s to end


@dataclass(frozen=True)
class LocalPrefect:
    """A running server, its process and its worker."""

    server: PrefectServer
    logs: Path
    server_process: PrefectProcess
    worker: RestartingWorker

    def check_running(self) -> None:
        """Check that the server runs, and start the worker again where it has ended.

        Raises:
            PrefectServerError: the server has ended by itself, or the worker soon after its start.
        """
        self.server_process.check_running()
        self.worker.restart_if_ended()


@contextmanager
def local_prefect(root: Path, home: Path, port: int | None, on_status: Callable[[str], None]) -> Iterator[LocalPrefect]:
    """Run server, pools, deployments and worker on loopback; every process is stopped at the end of the block.

    Args:
        root: of a clone; the worker and its flows run there.
        home: Prefect's home, where the server keeps its database; logs are in zk0-ui in it.
        port: of the server; None: 4200, or a free one where that is taken.
        on_status: called with one line for each step.

    Raises:
        SettingsError: there is no prefect.yaml, the port is taken, or `zk0 ui` with this home runs already.
        PrefectServerError: the server or the worker does not start, or a deployment is rejected.
    """
    if not (root / "prefect.yaml").is_file():
        raise SettingsError(f"{root}: no prefect.yaml; expected the root of a zk0 clone or a folder of `zk0 init`")
    logs = home / "zk0-ui"
    with _home_locked(logs):
        for log in logs.glob("*.log"):
            rotate_log(log, largest_bytes=0)
        key = read_or_make_api_key(home)

        def announce(server: PrefectServer) -> None:
            (logs / "lock").write_text(f"{os.getpid()} at {server.url}", encoding="utf-8")
            on_status(f"starting the Prefect server at {server.url}")

        def environment_of(chosen: int) -> CommandEnvironment:
            return CommandEnvironment(root, server_environment(home, chosen, key), logs)

        with server_on_port(port, key, environment_of, announce) as running:
            on_status("registering the deployments of prefect.yaml")
            running.server.create_pools(root / "deployments" / "pools")
            run_prefect("deployments", ["--no-prompt", "deploy", "--all"], running.environment)
            with _running_worker(running.server, running.environment, on_status) as worker:
                yield LocalPrefect(server=running.server, logs=logs, server_process=running.process, worker=worker)


@contextmanager
def _running_worker(
    server: PrefectServer, environment: CommandEnvironment, on_status: Callable[[str], None]
) -> Iterator[RestartingWorker]:
    """Run a worker; flow runs that it leaves unfinished, now or when it was killed earlier, are marked as Crashed."""
    name = f"zk0-ui-{socket.gethostname()}"

    def mark_crashed(reason: str) -> None:
        for run_id in server.mark_runs_crashed(name, reason):
            on_status(f"not finished, can be retried: prefect flow-run retry {run_id}")

    @contextmanager
    def started() -> Iterator[PrefectProcess]:
        mark_crashed("its worker was killed; Retry resumes after the last finished round")
        began = datetime.now(UTC)
        arguments = ["worker", "start", "--pool", POOL, "--name", name, "--limit", "1"]
        with start_prefect("worker", arguments, environment, _WORKER_STOP_TIMEOUT_SECONDS) as worker:
            ready = partial(server.worker_seen_since, began, POOL, name)
            wait_until_ready(worker, _WORKER_START_TIMEOUT_SECONDS, ready)
            yield worker

    on_status(f"starting a worker for the pool {POOL}")
    try:
        with RestartingWorker(started, on_status) as worker:
            try:
                yield worker
            finally:
                on_status("stopping")
    finally:
        with signals_ignored(), suppress(OSError):  # the server itself may have ended
            mark_crashed("stopped with `zk0 ui`; Retry resumes after the last finished round")


@contextmanager
def _home_locked(folder: Path) -> Iterator[None]:
    # the kernel releases the lock with the process, so a killed `zk0 ui` never leaves it behind
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / "lock").open("a+")
    except OSError as e:
        raise SettingsError(f"{folder}: cannot be written ({e.strerror}); choose another --home") from e
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            handle.seek(0)
            owner = handle.read()
            raise SettingsError(f"`zk0 ui` with the home {folder.parent} runs already: process {owner}") from e
        yield
