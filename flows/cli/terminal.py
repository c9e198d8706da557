"""Shows a session in the terminal: a progress bar while it runs, a table of its rounds when it is done."""

import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO

import typer
from loguru import logger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from flows.cli.interrupts import interrupted_by
from flows.cli.program_name import program_name, short_path
from tasks.events import ProgressEvent, add_progress_listener, emit_progress
from zk0.audit.ledger import Ledger
from zk0.errors import Zk0Error
from zk0.records import RoundRecord
from zk0.report.tables.table import mean_cell
from zk0.rules.release import Release
from zk0.rules.selection import select_round
from zk0.storage.results import read_rollouts
from zk0.storage.session_folder import SessionFolder

_LINE_SECONDS = 30.0
"""Between two lines about the steps of a client."""


@contextmanager
def session_progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show the progress of rounds and clients during the block; with `quiet`, log lines instead.

    Where the output is not a terminal, progress is plain lines.

    Yields a function that shows the name of a stage.
    """
    logger.remove()
    if quiet:
        logger.add(sys.stderr, format="{time:HH:mm:ss} {message}", level="INFO")
        yield logger.info
        return
    with _native_output_redirected() as terminal, _shown_progress(terminal) as update:
        remove_listener = add_progress_listener(update)
        try:
            yield lambda text: emit_progress(ProgressEvent(kind="stage", text=text))
        finally:
            remove_listener()


@contextmanager
def _shown_progress(output: TextIO) -> Iterator[Callable[[ProgressEvent], None]]:
    """Yield the function that shows progress events: as bars in a terminal, else as lines."""
    if not output.isatty():
        yield _ProgressLines(output).update
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(file=output), transient=True) as progress:
        yield _ProgressBars(progress).update


@contextmanager
def _native_output_redirected() -> Iterator[TextIO]:
    """Redirect file descriptor 2, to which encoders and other native libraries write, to a file; yield the terminal.

    The file is removed, unless an error that is not a Zk0Error ends the block; then its path is printed.
    """
    handle, path = tempfile.mkstemp(prefix="zk0-", suffix=".log")
    sys.stderr.flush()
    saved = os.dup(2)
    os.dup2(handle, 2)
    os.close(handle)
    unexpected = False
    try:
        with os.fdopen(os.dup(saved), "w", encoding=sys.stderr.encoding) as terminal:
            yield terminal
    except Exception as e:
        unexpected = not isinstance(e, Zk0Error)
        raise
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
        if unexpected:
            Console(stderr=True).print(f"output of native libraries: {path}", soft_wrap=True)
        else:
            Path(path).unlink(missing_ok=True)


class _ProgressLines:
    """A line for each stage and round, and for steps and frames of each client one in `_LINE_SECONDS`."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._shown_at: dict[str, float] = {}

    def update(self, event: ProgressEvent) -> None:
        """Print a line for one event."""
        if event.kind in ("stage", "evaluated"):
            self._print(event.text)
        elif event.kind == "session_started":
            self._print(f"session folder {short_path(Path(event.text))}")
        elif event.kind == "round_finished":
            self._print(f"round {event.round} of {event.rounds} done")
        elif event.kind == "client_answered":
            self._print(f"round {event.round}: {event.client} {f'refused: {event.text}' if event.text else 'answered'}")
        elif event.kind in ("optimizer_step", "frames_read") and self._is_due(event.client):
            what = "steps" if event.kind == "optimizer_step" and event.text != "encode" else "frames"
            self._print(f"round {event.round}: {event.client} {event.step} of {event.steps} {what}")

    def _is_due(self, client: str) -> bool:
        now = time.monotonic()
        due = now - self._shown_at.setdefault(client, now) >= _LINE_SECONDS
        if due:
            self._shown_at[client] = now
        return due

    def _print(self, text: str) -> None:
        self._output.write(f"{datetime.now():%H:%M:%S} {text}\n")
        self._output.flush()


class _ProgressBars:
    """One bar for the rounds, and one for each client in the current round."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._session = progress.add_task("starting Prefect", total=None)
        self._clients: dict[str, TaskID] = {}
        self._round = 0
        """The next one; clients of buffered rounds may train for an earlier one."""
        self._evaluated = ""

    def update(self, event: ProgressEvent) -> None:
        """Update the bars with one event."""
        if event.kind == "stage":
            self._progress.update(self._session, description=f"{event.text}{self._evaluated}")
        elif event.kind == "round_finished":
            self._round = event.round + 1
            self._progress.update(self._session, completed=event.round, total=event.rounds)
            self._progress.update(
                self._session, description=f"round {event.round} of {event.rounds} done{self._evaluated}"
            )
            self._remove_client_bars()
        elif event.kind == "evaluated":
            self._evaluated = f" · {event.text}"
        elif event.kind == "optimizer_step":
            bar, number = self._client_bar(event.client), max(event.round, self._round)
            since = f" since round {event.round}" if event.round < number else ""
            self._progress.update(bar, completed=event.step, total=event.steps, description=f"  {event.client}{since}")
            doing = "clients encode their frames" if event.text == "encode" else "clients train"
            self._progress.update(self._session, description=f"round {number}: {doing}{self._evaluated}")
        elif event.kind == "frames_read":
            self._progress.update(self._client_bar(event.client), completed=event.step, total=event.steps)
            self._progress.update(self._session, description=f"round {event.round}: encoding evaluation frames")
        elif event.kind == "client_answered":
            done = "refused" if event.text else "answered"
            self._progress.update(self._client_bar(event.client), description=f"  {event.client} {done}")

    def _client_bar(self, name: str) -> TaskID:
        if name not in self._clients:
            self._clients[name] = self._progress.add_task(f"  {name}", total=None)
        return self._clients[name]

    def _remove_client_bars(self) -> None:
        for bar in self._clients.values():
            self._progress.remove_task(bar)
        self._clients.clear()


@contextmanager
def line_on_interrupt(hint: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C, SIGTERM or SIGHUP print one line, which ends with the hint how to go on.

    The exit code is 128 + the signal's number: 130 after Ctrl-C, 143 after SIGTERM.
    """
    with interrupted_by(signal.SIGTERM, signal.SIGHUP) as received:
        try:
            yield
        except KeyboardInterrupt:
            typer.secho(f"zk0: stopped{hint()}", err=True)
            raise typer.Exit(128 + (received[-1] if received else signal.SIGINT)) from None


@contextmanager
def resume_hint() -> Iterator[None]:
    """Print the command that resumes the session when it fails, and as `line_on_interrupt` when it is stopped."""
    folders: list[str] = []

    def remember(event: ProgressEvent) -> None:
        if event.kind == "session_started":
            folders.append(event.text)

    def hint() -> str:
        resume = f"{program_name()} run --resume {shlex.quote(short_path(Path(folders[-1])))}"
        return f"finished rounds are kept: {resume}"

    remove_listener = add_progress_listener(remember)
    try:
        with line_on_interrupt(lambda: f"; {hint()}" if folders else ""):
            yield
    except Zk0Error as e:
        if folders and "run --resume" not in str(e):
            typer.echo(hint(), err=True)
        raise
    finally:
        remove_listener()


def print_session_result(folder: Path) -> None:
    """Print the rounds of a session as a table, and the paths of its videos, its policy and its report."""
    from zk0.report.conclusions import session_conclusions
    from zk0.report.next_commands import next_commands

    here = SessionFolder(folder)
    history = Ledger(here.ledger).read()
    console = Console()
    table = Table(title=here.name, title_justify="left")
    loss, error = "policy loss\nunseen data\n± 95 %", "action error\ndegrees\n± 95 %"
    for heading in ("round", loss, error, "clients' loss", "lr", "seconds"):
        table.add_column(heading, justify="right")
    for record in history:
        table.add_row(*_row(record))
    rollouts = read_rollouts(here.rollouts_folder)
    if (conclusions := session_conclusions(history, rollouts)).outcome == "worse":
        console.print(conclusions.headline, style="bold red")
    console.print(table)
    for found in sorted(here.rollouts(history[-1].round).rglob("rollout_*.mp4")):
        console.print(f"video    {short_path(found)}", soft_wrap=True)
    session = here.read_session()
    selection = select_round(session, history, rollouts)
    console.print(f"policy   {short_path(here.checkpoint(selection.round))}", soft_wrap=True)
    if (release := Release.read(here.release)) and release.repo_id:
        console.print(f"release  {release.summary()}", soft_wrap=True)
    console.print(f"report   {short_path(here.report)}", style="bold", soft_wrap=True)
    for title, command in next_commands(here, session, history, rollouts, program_name()):
        console.print(f"\n{title}:\n{command}", soft_wrap=True, highlight=False, markup=False)


def _row(record: RoundRecord) -> tuple[str, ...]:
    losses = [u.metrics.policy_loss for u in record.updates]
    return (
        str(record.round),
        mean_cell(record.evaluation, "policy_loss", 3).text,
        mean_cell(record.evaluation, "action_error_degrees", 2).text,
        f"{sum(losses) / len(losses):.3f}" if losses else "–",
        f"{record.decision.lr:.2g}" if record.decision else "–",
        f"{record.seconds:.1f}",
    )
