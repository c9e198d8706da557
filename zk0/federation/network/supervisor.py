"""Supervisor: `python -m zk0.federation.network.supervisor FOLDER` keeps the processes of `processes.json` running.

Each process has its own process group and log. A process that ends is restarted, after a pause that doubles while it
keeps ending. SIGTERM to the supervisor ends the processes in reverse order; when the supervisor itself is killed, Linux
kills them (decision 0021).
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from datetime import time as time_of_day
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Self

from zk0.errors import SettingsError
from zk0.federation.network.supervised_folder import (
    LOCK_FILE,
    PROCESSES_FILE,
    STATE_FILE,
    ProcessSpec,
    ProcessStatus,
    SupervisedFolder,
    SupervisorState,
)
from zk0.processes import die_with_parent
from zk0.storage.atomic import atomic_write_text
from zk0.storage.log_rotation import rotate_log

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_STABLE_SECONDS = 60.0
"""The pause starts from the first one again for a process that has run longer."""
_POLL_SECONDS = 0.2


def _local_time() -> time_of_day:
    return datetime.now().time()


class Supervisor:
    """Keeps processes running until `stopping` is set; the end of the block ends them.

    Args:
        folder: for state and logs.
        processes: to run.
        clock: returns the local time of day, for processes with hours.

    Raises:
        SettingsError: another supervisor runs in the folder.
    """

    def __init__(
        self, folder: Path, processes: Sequence[ProcessSpec], clock: Callable[[], time_of_day] = _local_time
    ) -> None:
        self._folder = SupervisedFolder(folder)
        self._lock: IO[bytes] | None = None
        self._processes = [_Process(spec, self._folder.log(spec.name), clock) for spec in processes]
        self._written = ""
        self.stopping = False

    def __enter__(self) -> Self:
        self._lock = (self._folder.path / LOCK_FILE).open("a+b")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise SettingsError(f"{self._folder.path}: its processes are running already") from e
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()).encode())
        self._lock.flush()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        for process in reversed(self._processes):
            process.stop()
        (self._folder.path / STATE_FILE).unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()

    def run(self) -> None:
        """Start and restart processes until `stopping` is set."""
        while not self.stopping:
            for process in self._processes:
                rotate_log(process.log)
                if process.update():
                    self._terminate_dependents(process.spec.name)
            self._write_state()
            time.sleep(_POLL_SECONDS)

    def _terminate_dependents(self, name: str) -> None:
        for process in self._processes:
            if process.spec.restart_after == name:
                process.terminate()

    def _write_state(self) -> None:
        state = SupervisorState(pid=os.getpid(), processes={p.spec.name: p.status for p in self._processes})
        if (text := state.model_dump_json()) != self._written:
            atomic_write_text(self._folder.path / STATE_FILE, text)
            self._written = text


class _Process:
    """One supervised process, and when it is due to be started."""

    def __init__(self, spec: ProcessSpec, log: Path, clock: Callable[[], time_of_day]) -> None:
        self.spec = spec
        self._clock = clock
        self.status = ProcessStatus(pid=None, since=time.time(), starts=0)
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._due = 0.0
        self._pause = _FIRST_PAUSE_SECONDS

    def update(self) -> bool:
        """Start the process if it is due, stop it outside its hours; return whether it has ended by itself."""
        if self.spec.hours is not None and not self.spec.hours.contains(self._clock()):
            self._stop_outside_hours()
        elif self._process is None:
            if time.monotonic() >= self._due:
                self._start()
        elif (code := self._process.poll()) is not None:
            self._schedule_restart(self._process.pid, code)
            return True
        return False

    def terminate(self) -> None:
        """Send SIGTERM to the process group; the process is restarted after it has ended."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)

    def stop(self) -> None:
        """End the process and all that it has started."""
        if self._process is None:
            return
        self.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(self.spec.stop_seconds)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _start(self) -> None:
        child = [sys.executable, "-m", "zk0.federation.network.supervisor", "--child", str(os.getpid())]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*child, *self.spec.command],
                env={**os.environ, **self.spec.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        last_exit, starts = self.status.last_exit, self.status.starts + 1
        self.status = ProcessStatus(pid=self._process.pid, since=time.time(), starts=starts, last_exit=last_exit)

    def _schedule_restart(self, pid: int, code: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # processes that it left behind
        ran = time.time() - self.status.since
        self._pause = _FIRST_PAUSE_SECONDS if ran > _STABLE_SECONDS else min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
        self._process, self._due = None, time.monotonic() + self._pause
        self.status = ProcessStatus(pid=None, since=time.time(), starts=self.status.starts, last_exit=code)
        _log(f"{self.spec.name} ended with {code} after {ran:.0f} s; restart in {self._pause:g} s")

    def _stop_outside_hours(self) -> None:
        if self.status.outside_hours:
            return
        self.stop()
        self._process = None
        self._due, self._pause = 0.0, _FIRST_PAUSE_SECONDS
        self.status = ProcessStatus(pid=None, since=time.time(), starts=self.status.starts, outside_hours=True)
        _log(f"{self.spec.name} stopped: its hours are {self.spec.hours}")


def _log(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def supervise(folder: Path) -> None:
    """Run the processes of a folder until SIGTERM or SIGINT."""
    specs = json.loads((folder / PROCESSES_FILE).read_text(encoding="utf-8"))
    with Supervisor(folder, [ProcessSpec.model_validate(spec) for spec in specs]) as supervisor:

        def stop(number: int, frame: FrameType | None) -> None:
            supervisor.stopping = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        supervisor.run()


def _exec_as_child(parent: int, command: Sequence[str]) -> None:
    """Become the command, as a process that ends with its parent."""
    die_with_parent(parent)
    os.execvp(command[0], list(command))


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        _exec_as_child(int(sys.argv[2]), sys.argv[3:])
    else:
        supervise(Path(sys.argv[1]))
