"""Prints the supervised processes of a server or a node, and their logs."""

import time
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from zk0.errors import SettingsError
from zk0.log_text import escape_controls

if TYPE_CHECKING:
    from zk0.federation.network.supervised_folder import SupervisedFolder

CLIENT_LOG = "client"
"""Name of the log of a node's training and sent updates."""
_POLL_SECONDS = 0.3


def print_processes(folder: "SupervisedFolder") -> None:
    """Print one line per process: its pid, since when it runs, how often it was restarted."""
    state = folder.state()
    for name, status in (state.processes if state else {}).items():
        since = datetime.fromtimestamp(status.since).strftime("%Y-%m-%d %H:%M:%S")
        if status.outside_hours:
            typer.echo(f"  {name:<10} paused since {since}: outside its hours")
        elif status.pid is None:
            typer.secho(f"  {name:<10} ended with {status.last_exit} at {since}, restarts soon", fg="yellow")
        else:
            starts = f", started {status.starts} times (ended with {status.last_exit})" if status.starts > 1 else ""
            typer.echo(f"  {name:<10} process {status.pid} since {since}{starts}")


def print_logs(logs: Sequence[Path]) -> None:
    """Print one line per log: its name, size, time of the last change, and file.

    Raises:
        SettingsError: there is none.
    """
    if not logs:
        raise SettingsError("nothing has been started here yet, so there is no log")
    for file in logs:
        found = file.stat()
        changed = datetime.fromtimestamp(found.st_mtime).strftime("%Y-%m-%d %H:%M:%S")
        typer.echo(f"{file.stem:<12} {found.st_size / 1000:10.1f} kB  {changed}  {file}")


def print_log(logs: Sequence[Path], name: str, lines: int, follow: bool) -> None:
    """Print the last lines of a log, and with `follow` new lines until Ctrl-C.

    Args:
        logs: files of all logs; the name of a log is that of its file without .log.
        name: of the log.
        lines: number of lines.
        follow: wait for new lines.

    Raises:
        SettingsError: there is no log of that name.
    """
    found = {file.stem: file for file in logs}
    if name not in found:
        there = f"there are: {', '.join(sorted(found))}" if found else "nothing has been started here yet"
        early = " (it begins with the first session)" if found and name == CLIENT_LOG else ""
        raise SettingsError(f"{name}: no such log{early}; {there}")
    file = found[name]
    with file.open(encoding="utf-8", errors="replace") as log:
        for line in deque(log, lines):
            typer.echo(_shown(line), nl=False)
        while follow:
            if line := log.readline():
                typer.echo(_shown(line), nl=False)
            else:
                time.sleep(_POLL_SECONDS)


def _shown(line: str) -> str:
    """Return a line of a log as it may be printed: other programs than ours write logs, too."""
    text = line.removesuffix("\n")
    return escape_controls(text) + line[len(text) :]
