"""Closed-loop attempts of the trained policy."""

from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task
from prefect.artifacts import create_link_artifact
from prefect.cache_policies import NO_CACHE

from tasks.events import Event, say, tell
from zk0.folder import SessionFolder
from zk0.records import Checkpoint, Rollout
from zk0.session import Session

if TYPE_CHECKING:
    from zk0.training.judge import Ground


@task(task_run_name="roll out {name}", cache_policy=NO_CACHE)
def roll_out(session: Session, folder: str, ground: "Ground", checkpoint: Checkpoint, name: str) -> tuple[Rollout, ...]:
    """The policy moves the simulated arm, once a seed; each attempt is filmed."""
    from zk0.training.closed_loop import roll_out_task

    tell(Event(kind="stage", text=f"rolling out {name} in the simulator", round=checkpoint.round))
    here = SessionFolder(Path(folder))
    rollouts = roll_out_task(session, ground, here.path, checkpoint, name)
    for rollout in rollouts:
        result = "success" if rollout.success else "no success"
        after = f"{result} after {rollout.duration_seconds:.1f} s"
        say(f"{name}, seed {rollout.seed}: {after}; {rollout.video or 'no video'}")
        if rollout.video:
            link = (here.path / rollout.video).resolve().as_uri()
            create_link_artifact(
                link=link, link_text=f"{name}: {result}", key="rollout-video", description=rollout.video
            )
    return rollouts
