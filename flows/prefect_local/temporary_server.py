"""A Prefect server for one command, which ends with that command."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from flows.prefect_local.own_origin import own_origins
from flows.prefect_local.ports import LOOPBACK, PORT_ADVICE, choose_port
from flows.prefect_local.prefect_process import CommandEnvironment, PrefectProcess, start_prefect
from flows.prefect_local.prefect_server import PrefectServer
from zk0.errors import PrefectServerError, SettingsError
from zk0.processes import check_port_free

_START_TIMEOUT_SECONDS = 180.0
_PORT_ATTEMPTS = 3
_PORT_TAKEN = "already in use"
"""In the log of a server that could not listen on its port: of Prefect's own check, and of uvicorn."""
_STOP_TIMEOUT_SECONDS = 5.0  # an open page of the UI would keep the server from ending
_NO_BLOCK_TYPES = {
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",  # 2 s; whoever saves a block registers its type, too
    "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",  # else `zk0 ui` with this home would not register them
}


@dataclass(frozen=True)
class RunningServer:
    """A server, its process and the environment of commands that use it."""

    server: PrefectServer
    process: PrefectProcess
    environment: CommandEnvironment


@contextmanager
def server_on_port(
    wanted: int | None,
    api_key: str,
    environment_of: Callable[[int], CommandEnvironment],
    on_start: Callable[[PrefectServer], None] = lambda _: None,
    modules: Sequence[str] = (),
) -> Iterator[RunningServer]:
    """Run a server as a child process during the block, which starts when the server is healthy.

    Another server that takes the port at the same moment wins it; this one then gets another port, unless it is given.

    Args:
        wanted: as for `choose_port`.
        api_key: that the server requires; empty: none.
        environment_of: environment of its process by port.
        on_start: called before a server is started.
        modules: imported while it starts.

    Raises:
        PrefectServerError: the server does not start.
        SettingsError: the wanted port is taken.
    """
    with ExitStack() as stack:
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            port = choose_port(wanted)
            server, environment = PrefectServer(f"http://{LOOPBACK}:{port}", api_key), environment_of(port)
            on_start(server)
            try:
                process = stack.enter_context(_running_server(server, environment, modules))
                break
            except PrefectServerError:
                if not _is_lost(port, environment.logs / "server.log"):
                    raise
                if wanted:
                    check_port_free(LOOPBACK, wanted, PORT_ADVICE)
                if attempt == _PORT_ATTEMPTS:
                    raise
        yield RunningServer(server, process, environment)


def _is_lost(port: int, log: Path) -> bool:
    """Return whether a server has lost its port to another process, which may have given it back since.

    A connection to another server also takes a port, for as long as it lasts.
    """
    try:
        check_port_free(LOOPBACK, port, PORT_ADVICE)
    except SettingsError:
        return True
    lines = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return _PORT_TAKEN in " ".join(lines.split())


@contextmanager
def _running_server(
    server: PrefectServer, environment: CommandEnvironment, modules: Sequence[str]
) -> Iterator[PrefectProcess]:
    with start_prefect("server", ["server", "start"], environment, _STOP_TIMEOUT_SECONDS) as process:
        wait_until_ready(process, _START_TIMEOUT_SECONDS, server.healthy, modules)
        yield process


@contextmanager
def temporary_server(root: Path, home: Path, modules: Sequence[str] = ()) -> Iterator[PrefectServer]:
    """Run a server on a free port of loopback during the block, with the database of this home.

    Prefect can start a temporary server itself, but leaves it running when the command is killed.

    Args:
        root: working directory of the server.
        home: Prefect's home; the log is in zk0-run in it, and is removed unless the server fails.
        modules: imported while it starts.

    Raises:
        PrefectServerError: the server does not start.
    """
    logs = home / "zk0-run" / str(os.getpid())
    logs.mkdir(parents=True, exist_ok=True)

    def environment_of(port: int) -> CommandEnvironment:
        return CommandEnvironment(root, {**server_environment(home, port), **_NO_BLOCK_TYPES}, logs)

    try:
        with server_on_port(0, "", environment_of, modules=modules) as running:
            yield running.server
    except PrefectServerError:
        raise  # its message names the log
    except BaseException:
        shutil.rmtree(logs, ignore_errors=True)
        raise
    shutil.rmtree(logs, ignore_errors=True)


@contextmanager
def configured_or_temporary_server(
    root: Path, on_status: Callable[[str], None], modules: Sequence[str] = ()
) -> Iterator[str]:
    """Yield the API URL of the server that Prefect is configured to use, or else of a temporary one.

    During the block Prefect in this process uses that server.

    Args:
        root: working directory of a temporary server.
        on_status: called with one line before a server is started, and one when it is ready.
        modules: imported while a temporary server starts.

    Raises:
        PrefectServerError: the temporary server does not start.
    """
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    if url := PREFECT_API_URL.value():
        yield str(url)
        return
    on_status("starting a Prefect server, for about 10 seconds")
    home, started = Path(PREFECT_HOME.value()), time.monotonic()
    with temporary_server(root, home, modules) as server, temporary_settings({PREFECT_API_URL: server.api_url}):
        from tasks.prefect_private import flush_logs_and_events

        on_status(f"the Prefect server is ready after {time.monotonic() - started:.0f} seconds")

        try:
            yield server.api_url
        finally:
            flush_logs_and_events()


def server_environment(home: Path, port: int, api_key: str = "") -> dict[str, str]:
    """Return the environment variables of a server on this port, and of commands that use it.

    Args:
        home: Prefect's home.
        port: of the server.
        api_key: that the server requires and the commands send; empty: none, for a server of one command.
    """
    keys = ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING")
    return {
        **{name: value for name, value in os.environ.items() if name not in keys},
        **(dict.fromkeys(keys, api_key) if api_key else {}),
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(own_origins(port)),
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_HOME": str(home),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(home / "storage"),
        "PREFECT_SERVER_MEMO_STORE_PATH": str(home / "memo_store.toml"),
        "PREFECT_API_URL": f"http://{LOOPBACK}:{port}/api",
        "PREFECT_SERVER_API_HOST": LOOPBACK,
        "PREFECT_SERVER_API_PORT": str(port),  # not --port: the UI would look for the server at port 4200
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PYTHONUNBUFFERED": "1",
    }


def wait_until_ready(
    process: PrefectProcess, timeout_seconds: float, ready: Callable[[], bool], modules: Sequence[str] = ()
) -> None:
    """Call `ready` until it returns True; an OSError counts as not ready.

    Args:
        process: that gets ready.
        timeout_seconds: for which is waited.
        ready: called again and again.
        modules: imported between the first calls, one after the other.

    Raises:
        PrefectServerError: the process has ended, or is not ready in time.
    """
    deadline, remaining = time.monotonic() + timeout_seconds, list(modules)
    while True:
        process.check_running()
        try:
            if ready():
                return
            problem = "not ready"
        except OSError as e:
            problem = str(e)
        if remaining:
            import_module(remaining.pop(0))
        elif time.monotonic() < deadline:
            time.sleep(0.2)
        else:
            break
    raise PrefectServerError(
        f"the Prefect {process.name} is not ready after {timeout_seconds:g} s ({problem}); see {process.log}"
    )
