"""Processes that are to run for weeks: `python -m zk0.federation.keeper FOLDER` starts those of `processes.json`.

Each has its own process group and log, is started again when it ends, later and later while it keeps ending, and is
killed by Linux should the keeper itself be killed. SIGTERM to the keeper ends them in order.
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
from zk0.federation.kept import Kept, KeptFolder, Seen, State
from zk0.federation.worker import die_with_parent
from zk0.folder import write_whole

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_STEADY_SECONDS = 60.0
"""Who has run for as long is started again at once when it ends."""
_STOP_SECONDS = 5.0
_LOOK_SECONDS = 0.2
_LOG_BYTES = 50_000_000


def _local_time() -> time_of_day:
    return datetime.now().time()


class Keeper:
    """Keeps processes running until it is told to stop.

    Args:
        folder: for its state and their logs.
        processes: what it keeps.
        clock: tells the time of the day, for those that have hours.
    """

    def __init__(self, folder: Path, processes: Sequence[Kept], clock: Callable[[], time_of_day] = _local_time) -> None:
        self._folder = KeptFolder(folder)
        self._state = folder / "state.json"
        self._lock_path = folder / "keeper.lock"
        self._lock: IO[bytes] | None = None
        self._children = [_Child(one, self._folder.log(one.name), clock) for one in processes]
        self._told = ""
        self.over = False

    def __enter__(self) -> Self:
        self._lock = self._lock_path.open("a+b")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise SettingsError(f"{self._folder.path}: its processes are running already") from e
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()).encode())
        self._lock.flush()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        for child in reversed(self._children):
            child.stop()
        self._state.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()

    def run(self) -> None:
        """Keep them until `over`."""
        while not self.over:
            for child in self._children:
                if child.look():
                    self._end_followers(child.kept.name)
            self._tell()
            time.sleep(_LOOK_SECONDS)

    def _end_followers(self, name: str) -> None:
        for child in self._children:
            if child.kept.follows == name:
                child.end()

    def _tell(self) -> None:
        state = State(keeper=os.getpid(), processes={c.kept.name: c.seen for c in self._children})
        if (told := state.model_dump_json()) != self._told:
            write_whole(self._state, told)
            self._told = told


class _Child:
    """One process, and when it is due to be started again."""

    def __init__(self, kept: Kept, log: Path, clock: Callable[[], time_of_day]) -> None:
        self.kept = kept
        self._clock = clock
        self.seen = Seen(pid=None, since=time.time(), starts=0)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._due = 0.0
        self._pause = _FIRST_PAUSE_SECONDS

    def look(self) -> bool:
        """Start it where it is due; note it where it has ended, and say so."""
        if self.kept.hours is not None and not self.kept.hours.hold(self._clock()):
            self._rest()
        elif self._process is None:
            if time.monotonic() >= self._due:
                self._start()
        elif (code := self._process.poll()) is not None:
            self._ended(self._process.pid, code)
            return True
        return False

    def _rest(self) -> None:
        if not self.seen.rests:
            self.stop()
            self._process = None
            self._due, self._pause = 0.0, _FIRST_PAUSE_SECONDS
            self.seen = Seen(pid=None, since=time.time(), starts=self.seen.starts, rests=True)
            sys.stderr.write(f"{self.kept.name} rests: its hours are {self.kept.hours}\n")
            sys.stderr.flush()

    def end(self) -> None:
        """Ask it to end; it is started again when it has."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)

    def stop(self) -> None:
        """End it with all that it started."""
        if self._process is None:
            return
        self.end()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _start(self) -> None:
        if self._log.is_file() and self._log.stat().st_size > _LOG_BYTES:
            self._log.replace(self._log.with_suffix(".log.1"))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "zk0.federation.keeper", "--child", str(os.getpid()), *self.kept.command],
                env={**os.environ, **self.kept.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        last, starts = self.seen.last_exit, self.seen.starts + 1
        self.seen = Seen(pid=self._process.pid, since=time.time(), starts=starts, last_exit=last)

    def _ended(self, pid: int, code: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what it may have left behind
        ran = time.time() - self.seen.since
        self._pause = _FIRST_PAUSE_SECONDS if ran > _STEADY_SECONDS else min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
        self._process, self._due = None, time.monotonic() + self._pause
        self.seen = Seen(pid=None, since=time.time(), starts=self.seen.starts, last_exit=code)
        sys.stderr.write(f"{self.kept.name} ended with {code} after {ran:.0f} s; again in {self._pause:g} s\n")
        sys.stderr.flush()


def keep(folder: Path) -> None:
    """Keep the processes of a folder until SIGTERM or SIGINT."""
    found = json.loads((folder / "processes.json").read_text(encoding="utf-8"))
    with Keeper(folder, [Kept.model_validate(one) for one in found]) as keeper:

        def stop(number: int, frame: FrameType | None) -> None:
            keeper.over = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        keeper.run()


def _become(parent: int, command: Sequence[str]) -> None:
    die_with_parent(parent)
    os.execvp(command[0], list(command))


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        _become(int(sys.argv[2]), sys.argv[3:])
    else:
        keep(Path(sys.argv[1]))
