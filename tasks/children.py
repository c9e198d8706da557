"""`zk0` commands as processes of their own, ended with the task that started them."""

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

import tomli_w
from prefect.settings import get_current_settings

from zk0.errors import Zk0Error
from zk0.folder import SessionFolder, toml_values, write_whole
from zk0.session import Session

_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Child:
    """A running `zk0 ARGUMENT...`."""

    process: "subprocess.Popen[str]"
    output: IO[str]

    def said(self) -> str:
        """The last lines that it printed, in one."""
        self.output.seek(0)
        lines = [line.strip() for line in self.output if line.strip()]
        return " | ".join(lines[-3:])[-400:]


def begun_in(output_dir: Path) -> SessionFolder | None:
    """The newest session in a folder of sessions; None where none has begun."""
    found = sorted(output_dir.glob("*/session.toml"))
    return SessionFolder(found[-1].parent) if found else None


def session_command(session: Session, file: Path) -> list[str]:
    """Arguments of `zk0` that take up the session that has begun in its `output_dir`, or else begin it.

    Args:
        session: its paths are absolute.
        file: the session file, which is written where nothing has begun.
    """
    if (there := begun_in(Path(session.output_dir))) is not None:
        return ["run", "--resume", str(there.path), "--quiet"]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, tomli_w.dumps(toml_values(session)))
    return ["run", str(file), "--quiet"]


@contextmanager
def zk0_command(arguments: Sequence[str]) -> Iterator[Child]:
    """`zk0 ARGUMENT...` in a process group and on our Prefect server; at the end of the block it is asked to stop."""
    command = [sys.executable, "-m", "flows.cli", *arguments]
    environment = os.environ | get_current_settings().to_environment_variables(exclude_unset=True)
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, start_new_session=True, text=True, env=environment
        )
        try:
            yield Child(process, output)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_PATIENCE_SECONDS)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_zk0(arguments: Sequence[str], what: str, error: type[Zk0Error]) -> None:
    """`zk0 ARGUMENT...`, waited for; `error` where it fails, with the last lines that it printed."""
    with zk0_command(arguments) as child:
        if code := child.process.wait():
            raise error(f"{what} ended with {code}: {child.said()}")
