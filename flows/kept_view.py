"""Processes that are kept running, in the terminal: what they do, and what they said."""

import time
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from zk0.errors import SettingsError

if TYPE_CHECKING:
    from zk0.federation.kept import KeptFolder

_LOOK_SECONDS = 0.3


def show_state(kept: "KeptFolder") -> None:
    """One line a process."""
    state = kept.state()
    for name, seen in (state.processes if state else {}).items():
        since = datetime.fromtimestamp(seen.since).strftime("%Y-%m-%d %H:%M:%S")
        if seen.rests:
            typer.echo(f"  {name:<10} rests since {since}: it is not its hours")
        elif seen.pid is None:
            typer.secho(f"  {name:<10} ended with {seen.last_exit} at {since}, is started again soon", fg="yellow")
        else:
            again = f", started {seen.starts} times (ended with {seen.last_exit})" if seen.starts > 1 else ""
            typer.echo(f"  {name:<10} process {seen.pid} since {since}{again}")


def show_log(logs: Sequence[Path], name: str, lines: int, follow: bool) -> None:
    """The end of one of these logs, and with `follow` what comes, until Ctrl-C.

    Raises:
        SettingsError: there is none of that name.
    """
    found = {file.stem: file for file in logs}
    if name not in found:
        raise SettingsError(f"{name}: no such log; there are: {', '.join(sorted(found)) or 'none yet'}")
    file = found[name]
    with file.open(encoding="utf-8", errors="replace") as log:
        for line in deque(log, lines):
            typer.echo(line, nl=False)
        while follow:
            if line := log.readline():
                typer.echo(line, nl=False)
            else:
                time.sleep(_LOOK_SECONDS)
