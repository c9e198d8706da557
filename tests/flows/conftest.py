"""A real Prefect server with its worker, started as a user starts it: `zk0 ui`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from zk0.federation.worker import die_with_parent

ROOT = Path(__file__).parents[2]
DEPLOYMENT = "zk0/federated-session"
SMALL = {
    "policy.path": "tiny",
    "rounds": 2,
    "checkpoint_interval": 0,
    "clients": [
        {"name": "lifter", "dataset": "sim:lift-red"},
        {"name": "placer", "dataset": "sim:place-red-blue"},
    ],
    "simulator.episodes": 2,
    "simulator.image_size": 64,
    "training.local_steps": 40,
    "training.batch_size": 8,
    "federation.workers": 1,
    "evaluation.datasets": [{"dataset": "sim:lift-red", "last_episodes": 1}],
    "evaluation.times": 2,
    "rollout.tasks": ["lift-red"],
    "rollout.seeds": [9000],
    "rollout.max_steps": 5,
    "video.episodes": 0,
}
"""Two clients, two rounds, one worker process: what costs time is the import of LeRobot."""


def _wait_until(condition: Callable[[], Any], seconds: float = 600, pause: float = 0.3) -> Any:
    """The first true answer; fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{condition} did not come true in {seconds} s"
        time.sleep(pause)
    return found


def processes_with(text: str) -> dict[int, str]:
    """Every living process whose environment holds `text`, as pid and command line."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if text.encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it has ended meanwhile
                continue
    return found


class RunningStack:
    """`zk0 ui` in a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.out = home / "ui.log"
        self.cache = home / "cache"
        outside = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        self.environment = {**outside, "PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_HOME": str(home)}
        self.popen: subprocess.Popen[bytes] | None = None
        self.api_url = ""

    def start(self, *options: str) -> None:
        """Start it and wait until it says where it is."""
        command = [sys.executable, "-m", "flows.cli", "ui", "--home", str(self.home), *options]
        with self.out.open("wb") as out:
            self.popen = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
        _wait_until(lambda: self.popen.poll() is not None or "Ctrl-C" in self.said())
        assert self.popen.poll() is None, self.said()
        self.api_url = re.search(r"PREFECT_API_URL=(\S+)", self.said()).group(1)
        self.environment["PREFECT_API_URL"] = self.api_url

    def said(self) -> str:
        """What it has printed so far."""
        return self.out.read_text(encoding="utf-8")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop; its exit code."""
        self.popen.send_signal(number)
        return self.popen.wait(90)

    def left_behind(self) -> dict[int, str]:
        """Processes that still run in this home."""
        return processes_with(f"PREFECT_HOME={self.home}\0")

    def prefect(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """`prefect ARGUMENT...` as a user of this server runs it."""
        command = [sys.executable, "-m", "prefect", *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=280)

    def client(self) -> Any:
        """Prefect's client for this server."""
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(self.api_url)

    def overrides(self, name: str, **more: Any) -> dict[str, Any]:
        """A small session that writes to `name` in this home; recordings are shared."""
        return {**SMALL, "output_dir": str(self.home / name), "cache_dir": str(self.cache), **more}

    def begin(self, overrides: dict[str, Any], **environment: str) -> UUID:
        """Ask for a session whose process has this environment too; the flow run's id."""
        with self.client() as client:
            deployment = client.read_deployment_by_name(DEPLOYMENT).id
            more = {"job_variables": {"env": environment}} if environment else {}
            run = client.create_flow_run_from_deployment(deployment, parameters={"overrides": overrides}, **more)
            return UUID(str(run.id))

    def kill_flow(self, run: UUID) -> None:
        """SIGKILL for the process of a flow run, and for nobody else."""
        (pid,) = [p for p, c in processes_with(f"PREFECT__FLOW_RUN_ID={run}\0").items() if "prefect.engine" in c]
        os.kill(pid, signal.SIGKILL)

    def kill_worker(self) -> None:
        """SIGKILL for Prefect's worker."""
        (pid,) = [p for p, c in self.left_behind().items() if "flows.prefect_process worker" in c]
        os.kill(pid, signal.SIGKILL)

    def state(self, run: UUID) -> Any:
        """The state of a flow run."""
        with self.client() as client:
            return client.read_flow_run(run).state

    def ended(self, run: UUID) -> Any:
        """The final state of a flow run, waited for."""
        return _wait_until(lambda: (s := self.state(run)) and s.is_final() and s)


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    """Waits for a condition, some seconds at most."""
    return _wait_until


@pytest.fixture
def new_stack(tmp_path: Path) -> Iterator[RunningStack]:
    """A stack of one test, not yet started."""
    running = RunningStack(tmp_path)
    try:
        yield running
    finally:
        if running.popen is not None and running.popen.poll() is None:
            running.stop()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A stack for all tests; no process of it outlives them."""
    running = RunningStack(tmp_path_factory.mktemp("stack"))
    try:
        running.start()
        yield running
    finally:
        if running.popen is not None:
            assert running.stop() == 0, running.said()
        assert running.left_behind() == {}


@pytest.fixture(scope="session")
def finished(stack: RunningStack) -> "subprocess.CompletedProcess[str]":
    """A session from the deployment, run to its end and watched; its clients train in its own process."""
    overrides = json.dumps(stack.overrides("undisturbed", **{"federation.workers": 0}))
    return stack.prefect("deployment", "run", DEPLOYMENT, "--watch", "--param", f"overrides={overrides}")


SESSION = """
name = "mini"
rounds = 2
checkpoint_interval = 1
[contract]
cameras = ["front"]
[policy]
path = "tiny"
[training]
local_steps = 6
batch_size = 8
lr = 1e-3
log_every_steps = 6
[federation]
workers = 0
min_updates = 1
[aggregation]
strategy = "fedavgm"  # the server's optimizer has state of its own, which must be taken up too
[evaluation]
times = 2
[video]
episodes = 0
[[clients]]
name = "a"
dataset = "local:{data}/a"
[[clients]]
name = "b"
dataset = "local:{data}/b"
[[evaluation.datasets]]
dataset = "local:{data}/judge"
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    said: str

    @property
    def one_line(self) -> str:
        """What the user is told; there must be exactly one line of it, and a failure."""
        told = [line for line in self.said.splitlines() if line.startswith("zk0: ")]
        assert self.code > 0, self.said
        assert len(told) == 1, self.said
        assert "Traceback" not in self.said
        return told[0]


class Place:
    """A folder with three small data sets, a session file over them, and `zk0` as forks of one process."""

    def __init__(self, path: Path, environment: dict[str, str]) -> None:
        self.path, self.environment = path, environment
        command = [sys.executable, str(Path(__file__).with_name("session_forks.py"))]
        pipe = subprocess.PIPE
        self._forks = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)
        self._outs = 0
        assert self._fork(record=str(path / "data")).code == 0
        (path / "session.toml").write_text(SESSION.format(data=path / "data"))

    def new(self, output: str | Path, *settings: str) -> list[str]:
        """Arguments of `zk0` that begin a session."""
        chosen = [f"output_dir={self.path / output}", f"cache_dir={self.path / 'cache'}", *settings]
        return ["run", str(self.path / "session.toml"), "--quiet", *(a for s in chosen for a in ("--set", s))]

    def again(self, folder: Path) -> list[str]:
        """Arguments that take one up."""
        return ["run", "--resume", str(folder), "--quiet"]

    def zk0(self, arguments: list[str], at: Sequence[Any] = (), then: Sequence[Any] = ("kill",), **more: Any) -> Ended:
        """`zk0 ARGUMENT...` in a process of its own, to which something happens at a moment (see session_forks.py)."""
        return self._fork(arguments=arguments, at=list(at), then=list(then), **more)

    def until_recorded(self, folder: Path) -> Ended:
        """Take a session up until its next round is in the ledger: what comes then, charts, takes longest."""
        ended = self.zk0(self.again(folder), ("open", r"/\.federated_metrics", 1))
        assert ended.code == -signal.SIGKILL, ended.said
        return ended

    def close(self) -> None:
        self._forks.stdin.close()
        assert self._forks.wait(60) == 0

    def _fork(self, **command: Any) -> Ended:
        self._outs += 1
        out = self.path / f"out-{self._outs}.log"
        self._forks.stdin.write(json.dumps(command | {"out": str(out)}) + "\n")
        self._forks.stdin.flush()
        return Ended(int(self._forks.stdout.readline()), out.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API URL of a Prefect server without a worker."""
    from flows.stack import lone_server

    with lone_server(ROOT, tmp_path_factory.mktemp("prefect")) as server:
        yield server.api_url


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Iterator[Place]:
    """Sessions of one Prefect server and one process that has imported everything."""
    path = tmp_path_factory.mktemp("place")
    quiet = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL", "PREFECT_HOME": str(path / "prefect")}
    found = Place(path, {**os.environ, **quiet, "PREFECT_API_URL": prefect_api})
    yield found
    found.close()
