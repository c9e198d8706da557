"""A folder whose processes a supervisor runs: what to run, whether it runs, and how to start and stop it.

`zk0.federation.network.supervisor` is the supervisor process itself. Server and nodes have such a folder each.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from zk0.errors import SettingsError
from zk0.federation.network.hours import DailyHours
from zk0.records import Record
from zk0.storage.atomic import atomic_write_text

LOCK_FILE = "supervisor.lock"
"""Locked while a supervisor runs in the folder; holds its process id."""
STATE_FILE = "state.json"
"""A SupervisorState."""
PROCESSES_FILE = "processes.json"
"""A list of ProcessSpec."""
_POLL_SECONDS = 0.2
_SUPERVISOR = (sys.executable, "-m", "zk0.federation.network.supervisor")


class ProcessSpec(Record):
    """A process that a supervisor keeps running."""

    name: str
    """Also the name of its log."""
    command: tuple[str, ...]
    environment: dict[str, str] = {}
    """Variables in addition to those of the supervisor."""
    restart_after: str = ""
    """Name of another process: when that ends, this one is restarted, too."""
    hours: DailyHours | None = None
    """When it may run, by this machine's clock; None: always."""
    stop_seconds: float = 5.0
    """How long it may take to end by itself before it is killed."""


class ProcessStatus(Record):
    """Status of one supervised process."""

    pid: int | None
    """None while it does not run."""
    since: float
    """Unix time of its last start or end."""
    starts: int
    last_exit: int | None = None
    """Exit code, negative for a signal."""
    outside_hours: bool = False
    """It does not run because of its hours."""


class SupervisorState(Record):
    """Status of a supervisor and its processes."""

    pid: int
    """Of the supervisor."""
    processes: dict[str, ProcessStatus]


class SupervisedFolder:
    """A folder with the processes, state and logs of one supervisor."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, name: str) -> Path:
        """Return the log file of one process."""
        return self.path / "logs" / f"{name}.log"

    def logs(self) -> list[Path]:
        """Return all log files that exist."""
        return sorted((self.path / "logs").glob("*.log"))

    def state(self) -> SupervisorState | None:
        """Return the supervisor's state; None where no supervisor runs."""
        lock = self.path / LOCK_FILE
        try:
            with lock.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except FileNotFoundError:
            return None
        except BlockingIOError:
            with suppress(FileNotFoundError, ValueError):
                return SupervisorState.model_validate_json((self.path / STATE_FILE).read_text(encoding="utf-8"))
            return SupervisorState(pid=int(lock.read_text() or 0), processes={})

    def write_processes(self, processes: Sequence[ProcessSpec]) -> None:
        """Write what the supervisor is to run."""
        (self.path / "logs").mkdir(parents=True, exist_ok=True)
        text = json.dumps([p.model_dump(mode="json") for p in processes], indent=2)
        atomic_write_text(self.path / PROCESSES_FILE, text)

    def start(self, detached: bool = True) -> "subprocess.Popen[bytes]":
        """Start a supervisor. Detached, it outlives this process; else it ends with the thread that calls this."""
        command = [*_SUPERVISOR, str(self.path)]
        if not detached:
            command = [*_SUPERVISOR, "--child", str(os.getpid()), *command]
        with self.log("supervisor").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def stop(self, timeout_seconds: float) -> bool:
        """Stop the supervisor and all its processes; return False where none runs.

        Raises:
            SettingsError: it does not end in time.
        """
        state = self.state()
        if state is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(state.pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout_seconds
        while self.state() is not None:
            if time.monotonic() > deadline:
                raise SettingsError(f"{self.path}: process {state.pid} does not end; see {self.log('supervisor')}")
            time.sleep(_POLL_SECONDS)
        return True
