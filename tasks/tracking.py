"""A session's numbers at Weights & Biases, if asked for."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.events import say
from tasks.secrets import secret
from zk0.folder import SessionFolder
from zk0.records import RoundRecord
from zk0.session import Session


@contextmanager
def tracked(session: Session, here: SessionFolder) -> Iterator[None]:
    """The session's run is open meanwhile, if it is to be tracked."""
    if session.tracking.wandb == "off":
        yield
        return
    from zk0.publish.tracker import KEY, open_tracker

    with open_tracker(session, here.name, here.path, secret(KEY)):
        say(f"{here.name}: tracked by Weights & Biases, {session.tracking.wandb}")
        yield


@task(task_run_name="track round {number}", cache_policy=NO_CACHE)
def track(number: int, name: str, history: Sequence[RoundRecord]) -> int:
    """Send what the run does not have yet; how many rounds those were."""
    from zk0.publish.tracker import tracker

    return tracker(name).follow(history)
