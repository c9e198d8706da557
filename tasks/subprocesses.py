"""`zk0` commands in processes of their own, which end with the task that started them.

A hyperparameter search, a benchmark against baselines and a nightly benchmark run whole sessions: each in a process of
its own, as a user runs it.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from prefect.settings import get_current_settings

from zk0.errors import Zk0Error
from zk0.settings.loading import to_toml
from zk0.settings.session import Session
from zk0.storage.atomic import atomic_write_text
from zk0.storage.session_folder import SessionFolder

_STOP_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Zk0Process:
    """A running `zk0 ARGUMENT...`."""

    process: "subprocess.Popen[str]"
    output: IO[str]

    def last_lines(self) -> str:
        """Return the last three lines of its output, joined to one."""
        self.output.seek(0)
        lines = [line.strip() for line in self.output if line.strip()]
        return " | ".join(lines[-3:])[-400:]


def newest_session(output_dir: Path) -> SessionFolder | None:
    """Return the newest session in a folder of sessions; None where it holds none.

    Raises:
        OSError: the folder cannot be listed.
    """
    folders = output_dir.iterdir() if output_dir.is_dir() else ()  # a glob would leave out what cannot be listed
    found = sorted(file for folder in folders if (file := folder / "session.toml").is_file())
    return SessionFolder(found[-1].parent) if found else None


def run_or_resume_arguments(session: Session, file: Path) -> list[str]:
    """Return arguments of `zk0` that resume the newest session in the session's `output_dir`, or else start this one.

    Args:
        session: its paths are absolute.
        file: the session file, which is written where a session starts.
    """
    if (there := newest_session(Path(session.output_dir))) is not None:
        return ["run", "--resume", str(there.path), "--quiet"]
    atomic_write_text(file, to_toml(session))
    return ["run", str(file), "--quiet"]


@contextmanager
def zk0_process(arguments: Sequence[str]) -> Iterator[Zk0Process]:
    """Run `zk0 ARGUMENT...` in its own process group and on this flow's Prefect server.

    At the end of the block the process gets SIGINT, and its group SIGKILL where it has not ended after a minute.
    """
    command = [sys.executable, "-m", "flows.cli.main", *arguments]
    environment = os.environ | get_current_settings().to_environment_variables(exclude_unset=True)
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, start_new_session=True, text=True, env=environment
        )
        try:
            yield Zk0Process(process, output)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_TIMEOUT_SECONDS)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_zk0(arguments: Sequence[str], name: str, error: type[Zk0Error]) -> None:
    """Run `zk0 ARGUMENT...` to its end.

    Args:
        arguments: of `zk0`.
        name: of this command in the error message.
        error: raised where the command fails, with the last lines of its output.
    """
    with zk0_process(arguments) as running:
        if code := running.process.wait():
            raise error(f"{name} ended with {code}: {running.last_lines()}")
