"""Sends a session's metrics to the trackers that `[tracking]` names."""

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
def tracker_runs(session: Session, here: SessionFolder) -> Iterator[None]:
    """Hold the session's runs at its trackers open during the block; do nothing where tracking is off."""
    if not session.tracking.services:
        yield
        return
    with ExitStack() as stack:
        start_tracking(session, str(here.path), cast(ExitStack, quote(stack)))
        yield


@task(task_run_name="start tracking", cache_policy=NO_CACHE, **HUB_RETRIES)
def start_tracking(session: Session, folder: str, stack: ExitStack) -> None:
    """Open the session's runs at its trackers until the stack is closed.

    Raises:
        PublishError: a tracker refuses it.
        TrackerUnavailable: a tracker does not respond; Prefect retries the task.
    """
    from zk0.publish.mlflow_tracker import MLFLOW_TOKEN
    from zk0.publish.trackers import open_trackers
    from zk0.publish.wandb_tracker import WANDB_KEY

    here = SessionFolder(Path(folder))
    secrets = {name: load_secret(name) for name in (WANDB_KEY, MLFLOW_TOKEN)}
    stack.enter_context(open_trackers(session, here.name, here.path, secrets))
    log_line(f"{here.name}: tracked by {', '.join(session.tracking.services)}")


@task(task_run_name="track round {number}", cache_policy=NO_CACHE, **DISK_RETRIES)
def log_rounds_to_trackers(number: int, folder: str, history: Sequence[RoundRecord]) -> int:
    """Send the rounds that the trackers do not have yet, with their attempts; return how many."""
    from zk0.publish.trackers import current_trackers
    from zk0.storage.results import read_rollouts

    here = SessionFolder(Path(folder))
    rollouts = read_rollouts(here.rollouts_folder)
    return max(tracker.log_rounds(history, rollouts) for tracker in current_trackers(here.name))
