"""Closed-loop attempts on disk: a result each, films of some, and all of them as a LeRobot data set if asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from zk0.errors import ReportError
from zk0.folder import write_whole
from zk0.records import Rollout, RolloutSubject
from zk0.report.canvas import camera_rows
from zk0.report.frames import Attempt, rollout_frames
from zk0.report.video import write_video
from zk0.results import free_path, read_rollouts, remove_halves
from zk0.robot.dataset import RecordedFrame, write_dataset
from zk0.session import SO101_JOINTS
from zk0.simulator.rollout import Trajectory
from zk0.smoothness import path_smoothness


@dataclass(frozen=True)
class Attempts:
    """Where the attempts of one model at one task lie.

    `rollout_YYYYMMDD_HHMMSS.json` is the result of one, `.mp4` its film, `dataset/` all of them as recordings.

    Args:
        base: what the paths of videos are relative to.
        folder: of films and results.
        subject: the model and the task.
    """

    base: Path
    folder: Path
    subject: RolloutSubject

    def finished(self, seeds: Sequence[int]) -> tuple[Rollout, ...] | None:
        """The attempts at these seeds, if this very model made all of them before.

        Films without a result, which a killed process leaves, are removed.
        """
        about = set(RolloutSubject.model_fields) - {"client", "policy_loss"}
        ours = self.subject.model_dump(include=about)
        found = {r.seed: r for r in read_rollouts(self.folder) if r.model_dump(include=about) == ours}
        remove_halves(self.folder)
        return tuple(found[seed] for seed in seeds) if found.keys() >= set(seeds) else None

    def keep(self, made: Sequence[Trajectory], films: int, camera_height: int, when: datetime) -> tuple[Rollout, ...]:
        """Write results and the first films; one that cannot be made is told in its result and fails nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return tuple(
            self._keep(seen, camera_height if index < films else None, when) for index, seen in enumerate(made)
        )

    @property
    def dataset(self) -> Path:
        """The folder of the attempts' recordings."""
        return self.folder / "dataset"

    def keep_dataset(self, made: Sequence[Trajectory]) -> None:
        """All attempts, successful or not, as a LeRobot data set.

        Raises:
            DatasetError: there is one already.
        """
        episodes = (list(_frames(seen)) for seen in made)
        write_dataset(self.dataset, episodes, fps=made[0].fps, joints=SO101_JOINTS, robot_type="so101_follower")

    def _keep(self, seen: Trajectory, camera_height: int | None, when: datetime) -> Rollout:
        path = free_path(self.folder, when)
        fault = None if camera_height is None else _film(seen, path, camera_height)
        filmed = camera_height is not None and fault is None
        result = Rollout(
            **self.subject.model_dump(),
            seed=seen.seed,
            success=seen.success,
            steps=seen.steps,
            duration_seconds=seen.duration_seconds,
            fps=seen.fps,
            smoothness=path_smoothness(np.stack([o.state for o in seen.observations]), seen.fps),
            video=str(path.relative_to(self.base)) if filmed else None,
            camera_rows=camera_rows(camera_height) if camera_height is not None and filmed else None,
            video_fault=fault,
        )
        write_whole(path.with_suffix(".json"), result.model_dump_json(indent=2))
        return result


def _film(seen: Trajectory, path: Path, camera_height: int) -> str | None:
    """Why the attempt could not be filmed; None if it was."""
    try:
        attempt = Attempt(
            images={name: [o.images[name] for o in seen.observations] for name in seen.observations[0].images},
            states=np.stack([o.state for o in seen.observations]),
            actions=seen.actions,
            joints=SO101_JOINTS,
            fps=seen.fps,
            task=seen.observations[0].task,
            seed=seen.seed,
            success=seen.success,
        )
        write_video(path, rollout_frames(attempt, camera_height), seen.fps)
    except ReportError as e:
        return str(e)
    return None


def _frames(seen: Trajectory) -> Iterator[RecordedFrame]:
    """What was seen, and what was done then."""
    for moment, action in zip(seen.observations[:-1], seen.actions, strict=True):
        yield RecordedFrame(moment.state, action, moment.images, moment.task)
