"""Fixtures of the flow tests: a real `zk0 ui` with server and worker, and `zk0` commands as forks of one process."""

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

from zk0.processes import die_with_parent

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
"""Settings of a small session: two clients, two rounds, one worker process. Most of its time, it imports LeRobot."""


def _wait_until(condition: Callable[[], Any], seconds: float = 600, pause: float = 0.3) -> Any:
    """Return the first true answer of `condition`; fail when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{condition} did not come true in {seconds} s"
        time.sleep(pause)
    return found


def processes_with(text: str) -> dict[int, str]:
    """Return the command line by pid of every running process whose environment contains `text`."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if text.encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it has ended meanwhile
                continue
    return found


class LocalPrefectCommand:
    """A `zk0 ui` process with its own home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.out = home / "ui.log"
        self.cache = home / "cache"
        outside = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        own = {"PREFECT_HOME": str(home), "HF_TOKEN_PATH": str(home / "no-token")}
        self.environment = {**outside, "PREFECT_WORKER_QUERY_SECONDS": "2", **own}
        self.popen: subprocess.Popen[bytes] | None = None
        self.api_url = ""

    def start(self, *options: str) -> None:
        """Start it, and wait until it has printed its addresses; on any port, because tests run side by side."""
        command = [sys.executable, "-m", "flows.cli.main", "ui", "--home", str(self.home), "--port", "0", *options]
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
        _wait_until(lambda: self.popen.poll() is not None or "Ctrl-C" in self.output())
        assert self.popen.poll() is None, self.output()
        self.api_url = re.search(r"PREFECT_API_URL=(\S+)", self.output()).group(1)
        self.environment["PREFECT_API_URL"] = self.api_url
        self.environment["PREFECT_API_AUTH_STRING"] = self.api_key()

    def output(self) -> str:
        """Return its output so far."""
        return self.out.read_text(encoding="utf-8")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.popen.send_signal(number)
        return self.popen.wait(90)

    def remaining_processes(self) -> dict[int, str]:
        """Return the processes that still run in this home."""
        return processes_with(f"PREFECT_HOME={self.home}\0")

    def prefect(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run `prefect ARGUMENT...` with this server."""
        command = [sys.executable, "-m", "prefect", *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=560)

    def client(self) -> Any:
        """Return Prefect's client of this server."""
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(self.api_url, auth_string=self.api_key())

    def settings(self) -> Any:
        """Return a context in which Prefect in this process uses this server."""
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        return temporary_settings({PREFECT_API_URL: self.api_url, PREFECT_API_AUTH_STRING: self.api_key()})

    def api_key(self) -> str:
        """Return the key that the server requires."""
        return (self.home / "zk0-ui" / "api.key").read_text(encoding="utf-8").strip()

    def overrides(self, name: str, **more: Any) -> dict[str, Any]:
        """Return overrides of a small session that writes to `name` in this home; sessions share the recordings."""
        return {**SMALL, "output_dir": str(self.home / name), "cache_dir": str(self.cache), **more}

    def start_session(self, overrides: dict[str, Any], **environment: str) -> UUID:
        """Create a flow run of a session and return its id; `environment` is added to that of its process."""
        more = {"job_variables": {"env": environment}} if environment else {}
        return self.run_deployment(DEPLOYMENT, {"overrides": overrides}, **more)

    def run_deployment(self, name: str, parameters: dict[str, Any], **more: Any) -> UUID:
        """Create a flow run of a deployment and return its id, as `prefect deployment run` does."""
        with self.client() as client:
            deployment = client.read_deployment_by_name(name).id
            return UUID(str(client.create_flow_run_from_deployment(deployment, parameters=parameters, **more).id))

    def retry(self, run: UUID) -> None:
        """Schedule a flow run that has ended once more, as `prefect flow-run retry` does."""
        from prefect.states import Scheduled

        with self.client() as client:
            client.set_flow_run_state(run, Scheduled(), force=True)

    def kill_flow(self, run: UUID) -> None:
        """Send SIGKILL to the process of a flow run only."""
        (pid,) = [p for p, c in processes_with(f"PREFECT__FLOW_RUN_ID={run}\0").items() if "prefect.engine" in c]
        os.kill(pid, signal.SIGKILL)

    def kill_worker(self) -> None:
        """Send SIGKILL to Prefect's worker."""
        (pid,) = [
            p
            for p, c in self.remaining_processes().items()
            if "flows.prefect_local.prefect_process" in c and " worker start " in c
        ]
        os.kill(pid, signal.SIGKILL)

    def state(self, run: UUID) -> Any:
        """Return the state of a flow run."""
        with self.client() as client:
            return client.read_flow_run(run).state

    def final_state(self, run: UUID) -> Any:
        """Wait for the final state of a flow run and return it."""
        with self.client() as client:
            return _wait_until(lambda: (s := client.read_flow_run(run).state) and s.is_final() and s, pause=1)


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., Any]:
    """Return the function that waits for a condition."""
    return _wait_until


@pytest.fixture
def new_local_prefect(tmp_path: Path) -> Iterator[LocalPrefectCommand]:
    """A `zk0 ui` for one test, not yet started."""
    running = LocalPrefectCommand(tmp_path)
    try:
        yield running
    finally:
        if running.popen is not None and running.popen.poll() is None:
            running.stop()


@pytest.fixture(scope="session")
def local_prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPrefectCommand]:
    """One `zk0 ui` for all tests; no process of it may outlive them."""
    running = LocalPrefectCommand(tmp_path_factory.mktemp("local_prefect"))
    try:
        running.start()
        yield running
    finally:
        if running.popen is not None:
            assert running.stop() == 0, running.output()
        assert running.remaining_processes() == {}


@pytest.fixture(scope="session")
def finished(local_prefect: LocalPrefectCommand) -> "subprocess.CompletedProcess[str]":
    """`prefect deployment run --watch` of a session that has finished; its clients train in the flow's own process."""
    overrides = json.dumps(local_prefect.overrides("uninterrupted", **{"federation.workers": 0}))
    return local_prefect.prefect("deployment", "run", DEPLOYMENT, "--watch", "--param", f"overrides={overrides}")


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
strategy = "fedavgm"  # the server's optimizer has a state, which must be resumed too
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
dataset = "local:{data}/unseen"
"""


@dataclass(frozen=True)
class CommandResult:
    """Exit code and output of a command."""

    code: int
    output: str

    @property
    def error_line(self) -> str:
        """The error message of a command that failed; fails where there is not exactly one line."""
        lines = [line for line in self.output.splitlines() if line.startswith("zk0: ")]
        assert self.code > 0, self.output
        assert len(lines) == 1, self.output
        assert "Traceback" not in self.output
        return lines[0]


class ForkedZk0:
    """A folder with small datasets and a session file, and `zk0` commands as forks of one process."""

    def __init__(self, path: Path, environment: dict[str, str]) -> None:
        self.path, self.environment = path, environment
        command = [sys.executable, str(Path(__file__).parents[1] / "support/session_forks.py")]
        pipe = subprocess.PIPE
        self._forks = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)
        self._outs = 0
        assert self._fork(record=str(path / "data")).code == 0
        (path / "session.toml").write_text(SESSION.format(data=path / "data"))

    def start_arguments(self, output: str | Path, *settings: str) -> list[str]:
        """Return arguments of `zk0` that start a session."""
        chosen = [f"output_dir={self.path / output}", f"cache_dir={self.path / 'cache'}", *settings]
        return ["run", str(self.path / "session.toml"), "--quiet", *(a for s in chosen for a in ("--set", s))]

    def resume_arguments(self, folder: Path) -> list[str]:
        """Return arguments of `zk0` that resume a session."""
        return ["run", "--resume", str(folder), "--quiet"]

    def run(
        self, arguments: list[str], at: Sequence[Any] = (), then: Sequence[Any] = ("kill",), **more: Any
    ) -> CommandResult:
        """Run `zk0 ARGUMENT...` in its own process; `at` and `then` inject a fault (see session_forks.py)."""
        return self._fork(arguments=arguments, at=list(at), then=list(then), **more)

    def run_until_recorded(self, folder: Path) -> CommandResult:
        """Resume a session until its next round is in the ledger; the charts after that would take longest."""
        result = self.run(self.resume_arguments(folder), ("open", r"/\.federated_metrics", 1))
        assert result.code == -signal.SIGKILL, result.output
        return result

    def state_in_ui(self, name: str) -> Any:
        """Return the state of the newest task run of this name."""
        from prefect.client.orchestration import SyncPrefectClient
        from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterName
        from prefect.client.schemas.sorting import TaskRunSort

        with SyncPrefectClient(self.environment["PREFECT_API_URL"]) as client:
            named = TaskRunFilter(name=TaskRunFilterName(any_=[name]))
            (run,) = client.read_task_runs(task_run_filter=named, sort=TaskRunSort.EXPECTED_START_TIME_DESC, limit=1)
            return run.state

    def table_in_ui(self, key: str) -> list[dict[str, Any]]:
        """Return the rows of the newest table artifact of this key."""
        from prefect.client.orchestration import SyncPrefectClient
        from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
        from prefect.client.schemas.sorting import ArtifactSort

        with SyncPrefectClient(self.environment["PREFECT_API_URL"]) as client:
            of_key = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
            (found,) = client.read_artifacts(artifact_filter=of_key, sort=ArtifactSort.CREATED_DESC, limit=1)
            return list(json.loads(str(found.data)))

    def close(self) -> None:
        self._forks.stdin.close()
        assert self._forks.wait(60) == 0

    def _fork(self, **command: Any) -> CommandResult:
        self._outs += 1
        out = self.path / f"out-{self._outs}.log"
        self._forks.stdin.write(json.dumps(command | {"out": str(out)}) + "\n")
        self._forks.stdin.flush()
        return CommandResult(int(self._forks.stdout.readline()), out.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API URL of a Prefect server without a worker."""
    from flows.prefect_local.temporary_server import temporary_server

    with temporary_server(ROOT, tmp_path_factory.mktemp("prefect")) as server:
        yield server.api_url


@pytest.fixture(scope="module")
def forked_zk0(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Iterator[ForkedZk0]:
    """`zk0` commands as forks of one process, with one Prefect server."""
    path = tmp_path_factory.mktemp("forked_zk0")
    quiet = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL", "PREFECT_HOME": str(path / "prefect")}
    found = ForkedZk0(path, {**os.environ, **quiet, "PREFECT_API_URL": prefect_api})
    yield found
    found.close()
