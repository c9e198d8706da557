"""`prefect` commands as child processes: each in its own process group, with its output in a log file.

`python -m flows.prefect_local.prefect_process PARENT_PID ARGUMENT...` is `prefect ARGUMENT...` that gets SIGTERM when
its parent ends.
"""

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from zk0.errors import PrefectServerError
from zk0.processes import die_with_parent, end_after_parent
from zk0.storage.log_rotation import rotate_log

KILL_SECONDS = 60.0
"""From the end of its parent, when it gets SIGTERM, to its SIGKILL."""


@dataclass(frozen=True)
class CommandEnvironment:
    """Working directory, environment variables and log folder of a `prefect` command."""

    root: Path
    variables: Mapping[str, str]
    logs: Path


@dataclass(frozen=True)
class PrefectProcess:
    """A running `prefect` command."""

    name: str
    popen: "subprocess.Popen[bytes]"
    log: Path

    def check_running(self) -> None:
        """Check that it still runs; its log is rotated.

        Raises:
            PrefectServerError: it has ended.
        """
        rotate_log(self.log)
        if (code := self.popen.poll()) is not None:
            raise PrefectServerError(
                f"the Prefect {self.name} ended with {code}: {_last_line(self.log)}; see {self.log}"
            )


@contextmanager
def start_prefect(
    name: str, arguments: Sequence[str], environment: CommandEnvironment, stop_timeout_seconds: float
) -> Iterator[PrefectProcess]:
    """Run `prefect ARGUMENT...` until the end of the block.

    Args:
        name: of the process in messages, and of its log file.
        arguments: of `prefect`.
        environment: where it runs.
        stop_timeout_seconds: time between SIGTERM at the end of the block and SIGKILL for all that it started.
    """
    log = environment.logs / f"{name}.log"
    with log.open("ab") as output:
        popen = subprocess.Popen(
            _command(*arguments),
            cwd=environment.root,
            env=dict(environment.variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal goes to this process only, which stops the others in order
        )
    try:
        yield PrefectProcess(name=name, popen=popen, log=log)
    finally:
        with signals_ignored():
            _stop(popen, stop_timeout_seconds)


def run_prefect(name: str, arguments: Sequence[str], environment: CommandEnvironment) -> None:
    """Run `prefect ARGUMENT...` to its end.

    Args:
        name: of its log file.
        arguments: of `prefect`.
        environment: where it runs.

    Raises:
        PrefectServerError: the command fails.
    """
    log = environment.logs / f"{name}.log"
    with log.open("wb") as output:
        done = subprocess.run(
            _command(*arguments),
            cwd=environment.root,
            env=dict(environment.variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise PrefectServerError(f"prefect {' '.join(arguments)}: {_last_line(log)}; see {log}")


@contextmanager
def signals_ignored() -> Iterator[None]:
    """Ignore SIGINT, SIGTERM and SIGHUP in the block, so that a second Ctrl-C does not interrupt the cleanup."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(popen: "subprocess.Popen[bytes]", timeout_seconds: float) -> None:
    popen.terminate()
    with suppress(subprocess.TimeoutExpired):
        popen.wait(timeout_seconds)
    with suppress(ProcessLookupError):
        os.killpg(popen.pid, signal.SIGKILL)
    popen.wait()


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flows.prefect_local.prefect_process", str(os.getpid()), *arguments]


def _last_line(log: Path) -> str:
    lines = [line.strip(" │╭╮╰╯─") for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "no output")


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]), signal.SIGTERM)
    end_after_parent(int(sys.argv[1]), KILL_SECONDS)
    starter = int(sys.argv[1])
    sys.argv[:2] = ["prefect"]
    if sys.argv[1:3] == ["server", "start"]:
        import prefect
        from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

        from flows.prefect_local.empty_database import create_empty_database
        from flows.prefect_local.own_origin import OwnOriginOnly
        from tasks.prefect_private import (
            apply_automation_changes_without_blocking,
            begin_sqlite_transactions_immediately,
            wrap_server_app,
        )

        create_empty_database(PREFECT_API_DATABASE_CONNECTION_URL.value(), prefect.__version__)
        begin_sqlite_transactions_immediately()
        apply_automation_changes_without_blocking()
        own_port = int(os.environ["PREFECT_SERVER_API_PORT"])
        wrap_server_app(lambda app: OwnOriginOnly(app, own_port, starter))
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)
