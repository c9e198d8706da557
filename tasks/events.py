"""What a session is doing right now, for whoever watches: the terminal, the Prefect UI, the log file."""

from collections.abc import Callable
from typing import Literal

from loguru import logger
from prefect.client.schemas.objects import TaskRun
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from prefect.logging.loggers import task_run_logger

from zk0.records import Record

_listeners: list[Callable[["Event"], None]] = []


class Event(Record):
    """One thing that happened."""

    kind: Literal["begun", "stage", "round", "step", "frames", "client", "judged", "done"]
    text: str = ""
    round: int = 0
    rounds: int = 0
    client: str = ""
    step: int = 0
    steps: int = 0


def listen(listener: Callable[[Event], None]) -> Callable[[], None]:
    """Tell someone of every event from now on; call what is returned to stop."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def tell(event: Event) -> None:
    """Tell everyone who listens."""
    for listener in list(_listeners):
        listener(event)


def tell_step(client: str, round_number: int, step: int, steps: int, work: str) -> None:
    """One step of one client's work: an optimizer step (`train`), or frames whose features are computed (`encode`)."""
    tell(Event(kind="step", client=client, round=round_number, step=step, steps=steps, text=work))


def say(text: str, of: TaskRun | None = None) -> None:
    """One log line: in the session's files and in the Prefect UI, of the task run that runs unless of another one."""
    logger.opt(depth=1).info(text)
    try:
        (task_run_logger(of) if of else get_run_logger()).info(text)
    except MissingContextError:
        return
