"""`prefect` commands as processes of ours: each in its group, its output in a log file, stopped with all it started.

`python -m flows.prefect_process ARGUMENT...` is `prefect ARGUMENT...` that ends with the process that started it.
"""

import ctypes
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from zk0.errors import StackError

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Surroundings:
    """Where a `prefect` command runs, with which environment, and the folder of its log."""

    root: Path
    environment: Mapping[str, str]
    logs: Path


@dataclass(frozen=True)
class Process:
    """A running `prefect` command."""

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
def running(what: str, arguments: Sequence[str], around: Surroundings, patience_seconds: float) -> Iterator[Process]:
    """`prefect ARGUMENT...` until the end of the block; then it has `patience_seconds` to end by itself."""
    log = around.logs / f"{what}.log"
    with log.open("ab") as output:
        popen = subprocess.Popen(
            _command(*arguments),
            cwd=around.root,
            env=dict(around.environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal reaches us alone, and we stop them in order
        )
    try:
        yield Process(what=what, popen=popen, log=log)
    finally:
        with undisturbed():
            _stop(popen, patience_seconds)


def run(what: str, arguments: Sequence[str], around: Surroundings) -> None:
    """`prefect ARGUMENT...`, waited for.

    Raises:
        StackError: it fails.
    """
    log = around.logs / f"{what}.log"
    with log.open("wb") as output:
        done = subprocess.run(
            _command(*arguments),
            cwd=around.root,
            env=dict(around.environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise StackError(f"prefect {' '.join(arguments)}: {_last_line(log)}; see {log}")


@contextmanager
def undisturbed() -> Iterator[None]:
    """A second Ctrl-C does not cut short what stops processes."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(popen: "subprocess.Popen[bytes]", patience_seconds: float) -> None:
    popen.terminate()
    with suppress(subprocess.TimeoutExpired):
        popen.wait(patience_seconds)
    with suppress(ProcessLookupError):
        os.killpg(popen.pid, signal.SIGKILL)
    popen.wait()


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flows.prefect_process", *arguments]


def _last_line(log: Path) -> str:
    lines = [line.strip(" │╭╮╰╯─") for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
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
