"""Processes that are to run for weeks, from outside: what is to be kept, whether it runs, and how to end it."""

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
from zk0.federation.hours import Hours
from zk0.folder import write_whole
from zk0.records import Record

_LOOK_SECONDS = 0.2


class Kept(Record):
    """A process to keep."""

    name: str
    """Also of its log."""
    command: tuple[str, ...]
    environment: dict[str, str] = {}
    """What it has besides ours."""
    follows: str = ""
    """Another one: when that ends, this is started anew too."""
    hours: Hours | None = None
    """When it may run, by this machine's clock; None: always."""


class Seen(Record):
    """What the keeper knows of one process."""

    pid: int | None
    since: float
    """Unix time of its last start, or end."""
    starts: int
    last_exit: int | None = None
    rests: bool = False
    """It is not its hours."""


class State(Record):
    """What the keeper knows of all its processes."""

    keeper: int
    processes: dict[str, Seen]


class KeptFolder:
    """The folder of a keeper, from outside: whether it runs, what it knows, and how to end it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, name: str) -> Path:
        """The log of one process."""
        return self.path / "logs" / f"{name}.log"

    def logs(self) -> list[Path]:
        """All logs that are there."""
        return sorted((self.path / "logs").glob("*.log"))

    def state(self) -> State | None:
        """What the keeper knows; None while none runs."""
        try:
            with self._lock.open("rb") as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except FileNotFoundError:
            return None
        except BlockingIOError:
            with suppress(FileNotFoundError, ValueError):
                return State.model_validate_json((self.path / "state.json").read_text(encoding="utf-8"))
            return State(keeper=int(self._lock.read_text() or 0), processes={})

    def write(self, processes: Sequence[Kept]) -> None:
        """What the keeper is to start."""
        (self.path / "logs").mkdir(parents=True, exist_ok=True)
        write_whole(self.path / "processes.json", json.dumps([p.model_dump(mode="json") for p in processes], indent=2))

    def start(self, outlives: bool = True) -> "subprocess.Popen[bytes]":
        """Start a keeper that outlives this process, or else ends with the thread that starts it."""
        keeper = [sys.executable, "-m", "zk0.federation.keeper"]
        bound = [] if outlives else [*keeper, "--child", str(os.getpid())]
        with self.log("keeper").open("ab") as log:
            return subprocess.Popen(
                [*bound, *keeper, str(self.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, patience_seconds: float) -> bool:
        """End the keeper and all its processes; False where there was none.

        Raises:
            SettingsError: it does not end.
        """
        state = self.state()
        if state is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(state.keeper, signal.SIGTERM)
        deadline = time.monotonic() + patience_seconds
        while self.state() is not None:
            if time.monotonic() > deadline:
                raise SettingsError(f"{self.path}: process {state.keeper} does not end; see {self.log('keeper')}")
            time.sleep(_LOOK_SECONDS)
        return True

    @property
    def _lock(self) -> Path:
        return self.path / "keeper.lock"
