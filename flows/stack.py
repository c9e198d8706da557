"""A Prefect server, the deployments of prefect.yaml and a worker on this machine, for as long as someone wants them."""

import fcntl
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from flows.prefect_process import Process, Surroundings, run, running, undisturbed
from flows.server import Server
from zk0.errors import SettingsError, StackError

POOL = "gpu"
USUAL_PORT = 4200
_HOST = "127.0.0.1"
_HEALTHY_SECONDS = 180.0
_WORKER_SECONDS = 120.0
_LEAST_SECONDS = 30.0
"""A worker that ends sooner is not started again."""
_STOP_WORKER_SECONDS = 40.0  # Prefect gives a flow 30 s to end
_STOP_SERVER_SECONDS = 5.0  # an open page would hold it for ever


@dataclass(frozen=True)
class Stack:
    """A server, the process that it lives in, and its worker."""

    server: Server
    logs: Path
    process: Process
    worker: "KeptWorker"

    def check(self) -> None:
        """Start the worker again where it has ended; otherwise nothing while all is well.

        Raises:
            StackError: the server has ended by itself, or the worker soon after it was started.
        """
        self.process.check()
        self.worker.keep()


class KeptWorker:
    """A worker that is started again when it ends by itself.

    Prefect's worker does where a run that was suspended is resumed before its process is gone (`this borrower is
    already holding one of this CapacityLimiter's tokens`, Prefect 3.7); the run is still there for the next worker.
    """

    def __init__(self, start: Callable[[], AbstractContextManager[Process]], tell: Callable[[str], None]) -> None:
        self._start, self._tell = start, tell
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def keep(self) -> None:
        """Start it again where it has ended.

        Raises:
            StackError: it has ended soon after it was started: the next one would, too.
        """
        try:
            self._process.check()
        except StackError as e:
            if time.monotonic() - self._began < _LEAST_SECONDS:
                raise
            self._tell(f"{e}; starting another one")
            self._open.close()
            self._begin()

    def _begin(self) -> None:
        self._process = self._open.enter_context(self._start())
        self._began = time.monotonic()


@contextmanager
def local_stack(root: Path, home: Path, port: int | None, tell: Callable[[str], None]) -> Iterator[Stack]:
    """Server, pools, deployments and worker on loopback; on the way out every process is stopped.

    Args:
        root: of a clone; the worker and its flows run there.
        home: Prefect's home, where the server keeps its database; logs go to zk0-ui in it.
        port: None: 4200, or a free one where that is taken.
        tell: is told what happens next.

    Raises:
        SettingsError: there is no prefect.yaml, the port is taken, or a stack with this home runs already.
        StackError: the server or the worker does not start, or a deployment is refused.
    """
    if not (root / "prefect.yaml").is_file():
        raise SettingsError(f"{root}: no prefect.yaml here; expected the root of a zk0 clone")
    logs = home / "zk0-ui"
    with _only_one(logs):
        chosen = choose_port(port)
        server = Server(f"http://{_HOST}:{chosen}")
        for log in logs.glob("*.log"):
            log.unlink()
        (logs / "lock").write_text(f"{os.getpid()} at {server.url}", encoding="utf-8")
        around = Surroundings(root, _environment(home, chosen), logs)
        tell(f"starting the Prefect server at {server.url} (with a new database this takes up to half a minute)")
        with serving(server, around) as process:
            tell("registering the deployments of prefect.yaml")
            server.create_pools(root / "deployments" / "pools")
            run("deployments", ["--no-prompt", "deploy", "--all"], around)
            with _worker(server, around, tell) as working:
                yield Stack(server=server, logs=logs, process=process, worker=working)


@contextmanager
def serving(server: Server, around: Surroundings) -> Iterator[Process]:
    """The server as a process, healthy.

    Raises:
        StackError: it does not start.
    """
    with running("server", ["server", "start"], around, _STOP_SERVER_SECONDS) as process:
        _wait(process, _HEALTHY_SECONDS, server.healthy)
        yield process


@contextmanager
def lone_server(root: Path, home: Path) -> Iterator[Server]:
    """A server on a free port of loopback for one command, with Prefect's usual database.

    Prefect would start one by itself, but leaves it running for ever when the command is killed.

    Raises:
        StackError: it does not start.
    """
    logs = home / "zk0-run" / str(os.getpid())
    logs.mkdir(parents=True, exist_ok=True)
    port = choose_port(0)
    server = Server(f"http://{_HOST}:{port}")
    try:
        with serving(server, Surroundings(root, _environment(home, port), logs)):
            yield server
    except StackError:
        raise  # its message names the log
    except BaseException:
        shutil.rmtree(logs, ignore_errors=True)
        raise
    shutil.rmtree(logs, ignore_errors=True)


@contextmanager
def _worker(server: Server, around: Surroundings, tell: Callable[[str], None]) -> Iterator[KeptWorker]:
    """A worker; what it leaves unfinished, or left when it was killed the last time, is called Crashed."""
    name = f"zk0-ui-{socket.gethostname()}"

    def settle(reason: str) -> None:
        for run_id in server.crash_unfinished(name, reason):
            tell(f"not finished, can be taken up again: prefect flow-run retry {run_id}")

    @contextmanager
    def started() -> Iterator[Process]:
        settle("its worker was killed; Retry goes on after the last finished round")
        begun = datetime.now(UTC)
        arguments = ["worker", "start", "--pool", POOL, "--name", name, "--limit", "1"]
        with running("worker", arguments, around, _STOP_WORKER_SECONDS) as worker:
            _wait(worker, _WORKER_SECONDS, lambda: server.heard_since(begun, POOL, name))
            yield worker

    tell(f"starting a worker for the pool {POOL}")
    try:
        with KeptWorker(started, tell) as worker:
            try:
                yield worker
            finally:
                tell("stopping")
    finally:
        with undisturbed(), suppress(OSError):  # the server itself may have ended
            settle("stopped with `zk0 ui`; Retry goes on after the last finished round")


@contextmanager
def some_server(root: Path, tell: Callable[[str], None]) -> Iterator[str]:
    """The API URL that Prefect is set to, or that of a server of our own, which Prefect then uses meanwhile.

    Raises:
        StackError: our own server does not start.
    """
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    if url := PREFECT_API_URL.value():
        yield str(url)
        return
    tell("starting a Prefect server")
    with lone_server(root, Path(PREFECT_HOME.value())) as server, temporary_settings({PREFECT_API_URL: server.api_url}):
        try:
            yield server.api_url
        finally:
            send_what_is_left()


def send_what_is_left() -> None:
    """Log lines and events that Prefect sends in the background reach the server before it ends."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for service in (APILogWorker, EventsWorker):
        service.drain_all(timeout=10)


def choose_port(wanted: int | None) -> int:
    """The wanted port; without a wish 4200, or a free one where that is taken.

    Raises:
        SettingsError: the wanted port is taken.
    """
    if (free := _bound(USUAL_PORT if wanted is None else wanted)) is not None:
        return free
    if wanted is None and (free := _bound(0)) is not None:
        return free
    raise SettingsError(f"port {wanted} on {_HOST} is taken; choose another, or leave --port out")


def _bound(port: int) -> int | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return None
        return int(probe.getsockname()[1])


def _environment(home: Path, port: int) -> dict[str, str]:
    return {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(home / "storage"),
        "PREFECT_SERVER_MEMO_STORE_PATH": str(home / "memo_store.toml"),
        "PREFECT_API_URL": f"http://{_HOST}:{port}/api",
        "PREFECT_SERVER_API_HOST": _HOST,
        "PREFECT_SERVER_API_PORT": str(port),  # not --port: the page would look for the server at 4200
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PYTHONUNBUFFERED": "1",
    }


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    # the lock goes with the process, so a killed stack never leaves it behind
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
            raise SettingsError(f"a stack with the home {folder.parent} runs already: process {handle.read()}") from e
        yield


def _wait(process: Process, seconds: float, ready: Callable[[], bool]) -> None:
    deadline, answer = time.monotonic() + seconds, "not ready"
    while time.monotonic() < deadline:
        process.check()
        try:
            if ready():
                return
        except OSError as e:
            answer = str(e)
        time.sleep(0.2)
    raise StackError(f"the Prefect {process.what} is not ready after {seconds:g} s ({answer}); see {process.log}")
