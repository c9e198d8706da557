"""Sends a session's metrics to Weights & Biases, if `tracking.wandb` asks for it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.utilities.annotations import quote

from tasks.events import log_line
from tasks.retry import DISK_RETRIES, HUB_RETRIES
from tasks.secrets import load_secret
from zk0.records import RoundRecord
from zk0.settings.session import Session
from zk0.storage.session_folder import SessionFolder


@contextmanager
def wandb_run(session: Session, here: SessionFolder) -> Iterator[None]:
    """Hold the session's Weights & Biases run open during the block; do nothing where tracking is off."""
    if session.tracking.wandb == "off":
        yield
        return
    with ExitStack() as stack:
        start_tracking(session, str(here.path), cast(ExitStack, quote(stack)))
        yield


@task(task_run_name="start tracking", cache_policy=NO_CACHE, **HUB_RETRIES)
def start_tracking(session: Session, folder: str, stack: ExitStack) -> None:
    """Open the session's Weights & Biases run until the stack is closed.

    Raises:
        PublishError: Weights & Biases refuses it.
        TrackerUnavailable: Weights & Biases does not respond; Prefect retries the task.
    """
    from zk0.publish.wandb_tracker import WANDB_KEY, open_wandb_tracker

    here = SessionFolder(Path(folder))
    stack.enter_context(open_wandb_tracker(session, here.name, here.path, load_secret(WANDB_KEY)))
    log_line(f"{here.name}: tracked by Weights & Biases, {session.tracking.wandb}")


@task(task_run_name="track round {number}", cache_policy=NO_CACHE, **DISK_RETRIES)
def log_rounds_to_wandb(number: int, folder: str, history: Sequence[RoundRecord]) -> int:
    """Send the rounds that the Weights & Biases run does not have yet, with their attempts; return how many."""
    from zk0.publish.wandb_tracker import current_wandb_tracker
    from zk0.storage.results import read_rollouts

    here = SessionFolder(Path(folder))
    return current_wandb_tracker(here.name).log_rounds(history, read_rollouts(here.rollouts_folder))
