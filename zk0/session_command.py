"""Run a session from Python, as `zk0 run` does, in a process of its own."""

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from zk0.errors import FederationError, SettingsError
from zk0.settings.loading import apply_overrides, load_session, override_session, parse_session, to_toml
from zk0.settings.session import Session
from zk0.stats.session_results import SessionResults, read_session

_STOP_SECONDS = 120.0
_ERROR = "zk0: "
"""Begins the error with which a command of zk0 ends (`flows.cli.errors_to_exit_codes`)."""
_MAX_ERROR_LINES = 200


def run_session_process(
    session: Session | Mapping[str, Any] | Path | str, overrides: Mapping[str, Any] | None = None
) -> SessionResults:
    """Run a session on this machine and return its results; the lines of its log go to stderr.

    Ctrl-C stops it; `zk0 run --resume FOLDER` continues it.

    Args:
        session: a session file, a `Session`, or a mapping of its settings. Relative paths are those of the working
            directory.
        overrides: settings by dotted name that replace those of the session, such as {"training.lr": 1e-4}.

    Raises:
        SettingsError: a setting is wrong.
        FederationError: the session failed; its log says why.
    """
    with TemporaryDirectory(prefix="zk0-run-") as folder:
        wanted = with_overrides(session, overrides or {})
        file, made = Path(folder) / "session.toml", Path(folder) / "made"
        file.write_text(to_toml(wanted), encoding="utf-8")
        run_command([sys.executable, "-m", "flows.cli.main", "run", str(file), "--quiet", "--folder-file", str(made)])
        return read_session(Path(made.read_text(encoding="utf-8")))


def with_overrides(session: Session | Mapping[str, Any] | Path | str, overrides: Mapping[str, Any]) -> Session:
    """Return the session with absolute paths, because its file lies in another folder."""
    if isinstance(session, Path | str):
        return load_session(Path(session), overrides, base=Path.cwd())
    if isinstance(session, Session):
        return override_session(session, overrides, "zk0.run").with_absolute_paths(Path.cwd())
    return parse_session(apply_overrides(session, overrides), "zk0.run").with_absolute_paths(Path.cwd())


def run_command(command: Sequence[str]) -> None:
    """Run a command of zk0 to its end, with its stderr on this process's.

    Raises:
        SettingsError: it ended with code 2; the text is its error, which may have several lines.
        FederationError: it ended with another code but 0.
    """
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        ending: list[str] = []
        try:
            for line in process.stderr or ():
                sys.stderr.write(line)
                ending = _ending(ending, line)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait(_STOP_SECONDS)
            raise
    if process.returncode:
        kind = SettingsError if process.returncode == 2 else FederationError
        text = "\n".join(ending).removeprefix(_ERROR).rstrip()
        raise kind(text or f"the session ended with code {process.returncode}")


def _ending(before: list[str], line: str) -> list[str]:
    """Return the lines from the last one that begins an error of zk0 on, at most so many; without one, the last line.

    >>> _ending(["zk0: lr: found -1"], "rounds: found 0")
    ['zk0: lr: found -1', 'rounds: found 0']
    >>> _ending(["12:00 round 1"], "Killed"), _ending(["12:00 round 1"], "zk0: no disk")
    (['Killed'], ['zk0: no disk'])
    """
    text = line.rstrip()
    if before and before[0].startswith(_ERROR) and not text.startswith(_ERROR):
        return before if len(before) == _MAX_ERROR_LINES else [*before, text]
    return [text] if text else before
