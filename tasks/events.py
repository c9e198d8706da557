"""Progress events and log lines of a session.

Tasks emit a `ProgressEvent` where a stage begins, a client makes a step or a round ends; the progress bar of the
terminal listens. A log line goes to the session's log files and to the Prefect UI.
"""

import time
from collections.abc import Callable
from typing import Literal

from loguru import logger
from prefect.client.schemas.objects import TaskRun
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from tasks.prefect_private import logger_of
from zk0.records import Record

_listeners: list[Callable[["ProgressEvent"], None]] = []


class ProgressEvent(Record):
    """One event in the progress of a session; fields that an event of this kind has no use for keep their default."""

    kind: Literal[
        "session_started", "stage", "round_finished", "optimizer_step", "frames_read", "client_answered", "evaluated"
    ]
    text: str = ""
    """A stage's name; the session's folder (session_started); the losses (evaluated); the work (optimizer_step); why a
    client is refused (client_answered; empty where it is not)."""
    round: int = 0
    rounds: int = 0
    """Rounds of the whole session (round_finished)."""
    client: str = ""
    """The client, or the dataset whose frames the server reads (frames_read)."""
    step: int = 0
    """Steps or frames that are done."""
    steps: int = 0
    """Steps or frames in all."""


def add_progress_listener(listener: Callable[[ProgressEvent], None]) -> Callable[[], None]:
    """Call `listener` with every event from now on; the function that this returns removes it."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def emit_progress(event: ProgressEvent) -> None:
    """Call every listener with the event."""
    for listener in list(_listeners):
        listener(event)


def emit_step_progress(client: str, round_number: int, step: int, steps: int, work: str) -> None:
    """Emit one step of a client: an optimizer step (`work` is `train`), or frames that it encodes (`encode`)."""
    event = ProgressEvent(kind="optimizer_step", client=client, round=round_number, step=step, steps=steps, text=work)
    emit_progress(event)


def log_line(text: str, task_run: TaskRun | None = None) -> None:
    """Log one line to the session's files and to the Prefect UI.

    Args:
        text: the line.
        task_run: the task run that the UI shows it with; unset: the one that is executing.
    """
    logger.opt(depth=1).info(text)
    try:
        (logger_of(task_run) if task_run else get_run_logger()).info(text)
    except MissingContextError:
        return


def frame_log_lines(dataset: str, seconds_between: float = 30.0) -> Callable[[str, int, int], None]:
    """Return a function that logs now and then how many frames of a dataset are done: work, frames done, all frames."""
    shown_at = time.monotonic()

    def show(work: str, done: int, total: int) -> None:
        nonlocal shown_at
        if time.monotonic() - shown_at >= seconds_between:
            shown_at = time.monotonic()
            log_line(f"{dataset}: {work}, {done} of {total} frames")

    return show
