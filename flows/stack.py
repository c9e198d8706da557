"""A Prefect server, the deployments of prefect.yaml and one worker on this machine, for as long as someone wants them.

`python -m flows.stack ARGUMENT...` is `prefect ARGUMENT...` that ends with the process that started it.
"""

import ctypes
import fcntl
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zk0.errors import SettingsError, StackError

POOL = "gpu"
USUAL_PORT = 4200
_HOST = "127.0.0.1"
_HEALTHY_SECONDS = 180.0
_WORKER_SECONDS = 60.0
_STOP_WORKER_SECONDS = 40.0  # Prefect gives a flow 30 s to end
_STOP_SERVER_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Stack:
    """Where a running stack is found."""

    url: str
    home: Path
    processes: "tuple[Process, ...]"

    @property
    def api_url(self) -> str:
        """For PREFECT_API_URL."""
        return f"{self.url}/api"

    def deployment_url(self, name: str) -> str:
        """The page of a deployment, named `flow/deployment`."""
        return f"{self.url}/deployments/deployment/{_ask(self.api_url, f'/deployments/name/{name}')['id']}"

    def check(self) -> None:
        """Nothing while all is well.

        Raises:
            StackError: a process has ended by itself.
        """
        for process in self.processes:
            process.check()


@dataclass(frozen=True)
class Process:
    """A process in its own group, and where its output goes."""

    what: str
    popen: "subprocess.Popen[bytes]"
    log: Path

    def check(self) -> None:
        """Nothing while it runs.

        Raises:
            StackError: it has ended.
        """
        if (code := self.popen.poll()) is not None:
            raise StackError(f"the Prefect {self.what} ended with {code}: {_last_line(self.log)}; see {self.log}")


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
        url = f"http://{_HOST}:{chosen}"
        (logs / "lock").write_text(f"{os.getpid()} at {url}", encoding="utf-8")
        environment = _environment(home, chosen)
        tell(f"starting the Prefect server at {url} (with a new database this takes up to half a minute)")
        command = [sys.executable, "-m", "flows.stack"]
        with _running("server", [*command, "server", "start"], root, environment, logs) as server:
            _wait(server, _HEALTHY_SECONDS, lambda: _ask(f"{url}/api", "/health") is True)
            tell("registering the deployments of prefect.yaml")
            _create_pools(root / "deployments" / "pools", f"{url}/api")
            _deploy(root, environment, logs / "deploy.log")
            tell(f"starting a worker for the pool {POOL}")
            begun = datetime.now(UTC)
            work = ["worker", "start", "--pool", POOL, "--name", socket.gethostname(), "--limit", "1"]
            with _running("worker", [*command, *work], root, environment, logs) as worker:
                _wait(worker, _WORKER_SECONDS, lambda: _polls_since(f"{url}/api", begun))
                yield Stack(url=url, home=home, processes=(server, worker))
                tell("stopping")


def choose_port(wanted: int | None) -> int:
    """The wanted port; without a wish 4200, or a free one where that is taken.

    Raises:
        SettingsError: the wanted port is taken.
    """
    for port in (wanted or USUAL_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, port))
            except OSError as e:
                if wanted is None:
                    continue
                raise SettingsError(f"port {wanted}: {e.strerror}; choose another, or leave --port out") from e
            return int(probe.getsockname()[1])
    raise StackError(f"no free port on {_HOST}")


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
        "PREFECT_CLI_PROMPT": "false",
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


@contextmanager
def _running(
    what: str, command: list[str], root: Path, environment: Mapping[str, str], logs: Path
) -> Iterator[Process]:
    log = logs / f"{what}.log"
    with log.open("wb") as output:
        popen = subprocess.Popen(
            command,
            cwd=root,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C in the terminal reaches us alone, and we stop them in order
        )
    try:
        yield Process(what=what, popen=popen, log=log)
    finally:
        with _undisturbed():
            _stop(popen, _STOP_WORKER_SECONDS if what == "worker" else _STOP_SERVER_SECONDS)


def _stop(popen: "subprocess.Popen[bytes]", patience_seconds: float) -> None:
    """Ask, wait, then end the whole group."""
    popen.terminate()
    with suppress(subprocess.TimeoutExpired):
        popen.wait(patience_seconds)
    with suppress(ProcessLookupError):
        os.killpg(popen.pid, signal.SIGKILL)
    popen.wait()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C does not leave processes behind."""
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(process: Process, seconds: float, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while True:
        process.check()
        with suppress(OSError):
            if ready():
                return
        if time.monotonic() > deadline:
            raise StackError(f"the Prefect {process.what} is not ready after {seconds:g} s; see {process.log}")
        time.sleep(0.2)


def _create_pools(folder: Path, api: str) -> None:
    """Every `<pool>-process.json` is the base job template of a process pool; one that exists is left as it is."""
    for file in sorted(folder.glob("*-process.json")):
        pool = {
            "name": file.stem.removesuffix("-process"),
            "type": "process",
            "description": "Flows as processes of this machine. One worker a GPU, each with its CUDA_VISIBLE_DEVICES.",
            "base_job_template": json.loads(file.read_text(encoding="utf-8")),
        }
        try:
            _ask(api, "/work_pools/", pool)
        except urllib.error.HTTPError as e:
            if e.code != 409:
                raise StackError(f"{file}: the server refuses this pool: {e.read().decode()[:200]}") from e


def _deploy(root: Path, environment: Mapping[str, str], log: Path) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    with log.open("wb") as output:
        done = subprocess.run(
            command,
            cwd=root,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
    if done.returncode:
        raise StackError(f"prefect.yaml: the deployments cannot be registered: {_last_line(log)}; see {log}")


def _polls_since(api: str, moment: datetime) -> bool:
    workers = _ask(api, f"/work_pools/{POOL}/workers/filter", {})
    beats = [datetime.fromisoformat(w["last_heartbeat_time"]) for w in workers if w["last_heartbeat_time"]]
    return any(beat >= moment for beat in beats)


def _ask(api: str, path: str, body: Any = None) -> Any:
    """The server's answer to GET, or to POST where there is a body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(api + path, data, {"Content-Type": "application/json"})
    with _direct.open(request, timeout=10) as answer:
        return json.load(answer)


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "no output")


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == 1:
        raise SystemExit("the process that started this one is gone")


if __name__ == "__main__":
    _end_with_parent()
    sys.argv[0] = "prefect"
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)
