"""A session in the terminal: a progress bar while it runs, a small table when it is done."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import typer
from loguru import logger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from tasks.events import Event, listen, tell
from zk0.errors import Zk0Error
from zk0.folder import SessionFolder
from zk0.ledger import Ledger
from zk0.records import RoundRecord
from zk0.release import Release


@contextmanager
def watching(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show rounds and clients while a session runs; with `quiet`, log lines instead. What it gives tells a stage."""
    logger.remove()
    if quiet:
        logger.add(sys.stderr, format="{time:HH:mm:ss} {message}", level="INFO")
        yield logger.info
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with (
        _native_output_aside() as terminal,
        Progress(*columns, console=Console(file=terminal), transient=True) as shown,
    ):
        stop = listen(_Bars(shown).show)
        try:
            yield lambda text: tell(Event(kind="stage", text=text))
        finally:
            stop()


@contextmanager
def _native_output_aside() -> Iterator[TextIO]:
    """The terminal's stderr, while encoders and other native libraries, which write to descriptor 2, go to a file.

    The file is removed unless something unforeseen is raised; then its path is told.
    """
    handle, path = tempfile.mkstemp(prefix="zk0-", suffix=".log")
    sys.stderr.flush()
    saved = os.dup(2)
    os.dup2(handle, 2)
    os.close(handle)
    unforeseen = False
    try:
        with os.fdopen(os.dup(saved), "w", encoding=sys.stderr.encoding) as terminal:
            yield terminal
    except Exception as e:
        unforeseen = not isinstance(e, Zk0Error)
        raise
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
        if unforeseen:
            Console(stderr=True).print(f"what libraries printed meanwhile: {path}", soft_wrap=True)
        else:
            Path(path).unlink(missing_ok=True)


class _Bars:
    """One bar for the rounds, one for each client in the round."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._session = progress.add_task("starting Prefect", total=None)
        self._clients: dict[str, TaskID] = {}
        self._judged = ""

    def show(self, event: Event) -> None:
        """Move what the event moves."""
        if event.kind == "stage":
            self._progress.update(self._session, description=f"{event.text}{self._judged}")
        elif event.kind == "round":
            self._progress.update(self._session, completed=event.round, total=event.rounds)
            self._progress.update(
                self._session, description=f"round {event.round} of {event.rounds} done{self._judged}"
            )
            self._forget_clients()
        elif event.kind == "judged":
            self._judged = f" · {event.text}"
        elif event.kind == "step":
            bar = self._client(event.client)
            self._progress.update(bar, completed=event.step, total=event.steps)
            doing = "clients look at their frames once" if event.text == "encode" else "clients train"
            self._progress.update(self._session, description=f"round {event.round}: {doing}{self._judged}")
        elif event.kind == "frames":
            self._progress.update(self._client(event.client), completed=event.step, total=event.steps)
            self._progress.update(self._session, description=f"round {event.round}: the judge looks at its frames once")
        elif event.kind == "client":
            self._progress.update(self._client(event.client), description=f"  {event.client} answered")

    def _client(self, name: str) -> TaskID:
        if name not in self._clients:
            self._clients[name] = self._progress.add_task(f"  {name}", total=None)
        return self._clients[name]

    def _forget_clients(self) -> None:
        for bar in self._clients.values():
            self._progress.remove_task(bar)
        self._clients.clear()


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends a session with one line that says how to take it up again, and exit code 130."""
    begun: list[str] = []
    stop = listen(lambda event: begun.append(event.text) if event.kind == "begun" else None)
    try:
        yield
    except KeyboardInterrupt:
        again = f"; finished rounds are kept: zk0 run --resume {_shown(Path(begun[-1]))}" if begun else ""
        typer.secho(f"zk0: stopped{again}", err=True)
        raise typer.Exit(130) from None
    finally:
        stop()


def show_result(folder: Path) -> None:
    """The rounds of a session in a table, and what to open."""
    here = SessionFolder(folder)
    history = Ledger(here.ledger).read()
    console = Console()
    table = Table(title=here.name, title_justify="left")
    for heading in ("round", "policy loss\n(unseen data)", "action error\n(degrees)", "clients' loss", "lr", "seconds"):
        table.add_column(heading, justify="right")
    for record in history:
        table.add_row(*_row(record))
    console.print(table)
    for found in sorted(here.rollouts(history[-1].round).rglob("rollout_*.mp4")):
        console.print(f"video    {_shown(found)}", soft_wrap=True)
    console.print(f"policy   {_shown(here.checkpoint(history[-1].round))}", soft_wrap=True)
    if (release := Release.read(here.release)) and release.repo_id:
        console.print(f"release  {release.told()}", soft_wrap=True)
    console.print(f"report   {_shown(here.report)}", style="bold", soft_wrap=True)


def _row(record: RoundRecord) -> tuple[str, ...]:
    judged = record.evaluation
    losses = [u.metrics.policy_loss for u in record.updates]
    error = f" ± {1.96 * judged.policy_loss_se:.3f}" if judged and judged.policy_loss_se is not None else ""
    return (
        str(record.round),
        f"{judged.policy_loss:.3f}{error}" if judged else "–",
        f"{judged.action_error_degrees:.2f}" if judged else "–",
        f"{sum(losses) / len(losses):.3f}" if losses else "–",
        f"{record.decision.lr:.2g}" if record.decision else "–",
        f"{record.seconds:.1f}",
    )


def _shown(path: Path) -> str:
    """Relative where that is shorter."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
