"""Closed-loop attempts on disk: a result for each, videos of some, and optionally all of them as a LeRobot dataset."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from zk0.data.dataset_writer import RecordedFrame, write_dataset
from zk0.errors import ReportError, may_pass
from zk0.records import Rollout, RolloutSubject
from zk0.report.video.canvas import camera_rows
from zk0.report.video.encoder import write_video
from zk0.report.video.video_frames import AttemptRecording, rollout_frames
from zk0.settings.dataset_settings import SO101_JOINTS
from zk0.simulator.rollout import Trajectory
from zk0.stats.smoothness import path_smoothness
from zk0.storage.atomic import atomic_write_text
from zk0.storage.results import read_result, remove_unfinished_videos, result_files, unused_video_path


@dataclass(frozen=True)
class AttemptStore:
    """The folder of one model's attempts at one task.

    `rollout_YYYYMMDD_HHMMSS.json` is the result of an attempt, `.mp4` its video, `dataset/` a LeRobot dataset of all
    attempts.

    Args:
        base: results name their videos relative to this folder.
        folder: of results and videos.
        subject: the model and the task.
    """

    base: Path
    folder: Path
    subject: RolloutSubject

    def read_finished(self, seeds: Sequence[int]) -> tuple[Rollout, ...] | None:
        """The results of the attempts with these seeds, or None if one of them is missing or of another model.

        Videos without a result, which a killed process leaves, are removed.
        """
        found = {result.seed: result for result in self._stored_results().values()}
        remove_unfinished_videos(self.folder)
        return tuple(found[seed] for seed in seeds) if found.keys() >= set(seeds) else None

    def store(
        self, attempts: Sequence[Trajectory], videos: int, camera_height: int, when: datetime
    ) -> tuple[Rollout, ...]:
        """Write a result for each attempt, and videos of the first ones.

        They replace earlier results of the same attempts, which a killed process or a failed disk left incomplete.
        If a video cannot be rendered, its result names the error, and the other attempts are stored all the same.

        Args:
            attempts: those of which videos are rendered must hold an observation for every step.
            videos: how many attempts get a video.
            camera_height: pixels of a camera image in the video.
            when: names the files.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        seeds = {attempt.seed for attempt in attempts}
        replaced = [file for file, result in self._stored_results().items() if result.seed in seeds]
        made = tuple(
            self._store_attempt(attempt, camera_height if index < videos else None, when)
            for index, attempt in enumerate(attempts)
        )
        for file in replaced:
            file.unlink()
            file.with_suffix(".mp4").unlink(missing_ok=True)
        return made

    @property
    def dataset_folder(self) -> Path:
        """The folder of the LeRobot dataset of all attempts."""
        return self.folder / "dataset"

    def store_dataset(self, attempts: Sequence[Trajectory]) -> None:
        """Write all attempts, successful or not, as a LeRobot dataset.

        Raises:
            DatasetError: the dataset exists.
        """
        episodes = (list(_recorded_frames(attempt)) for attempt in attempts)
        fps = attempts[0].fps
        write_dataset(self.dataset_folder, episodes, fps=fps, joints=SO101_JOINTS, robot_type="so101_follower")

    def _stored_results(self) -> dict[Path, Rollout]:
        """The results of attempts of the same model at the same task under the same conditions, by file."""
        identity = set(RolloutSubject.model_fields) - {"client", "policy_loss"}
        wanted = self.subject.model_dump(include=identity)
        results = {file: read_result(file) for file in result_files(self.folder, ".json")}
        return {
            file: result
            for file, result in results.items()
            if isinstance(result, Rollout) and result.model_dump(include=identity) == wanted
        }

    def _store_attempt(self, attempt: Trajectory, camera_height: int | None, when: datetime) -> Rollout:
        path = unused_video_path(self.folder, when)
        error = None if camera_height is None else _render_attempt(attempt, path, camera_height)
        rendered = camera_height is not None and error is None
        result = Rollout(
            **self.subject.model_dump(),
            seed=attempt.seed,
            success=attempt.success,
            steps=attempt.steps,
            duration_seconds=attempt.duration_seconds,
            fps=attempt.fps,
            smoothness=path_smoothness(np.stack([o.state for o in attempt.observations]), attempt.fps),
            video=str(path.relative_to(self.base)) if rendered else None,
            camera_rows=camera_rows(camera_height) if camera_height is not None and rendered else None,
            video_error=error,
        )
        atomic_write_text(path.with_suffix(".json"), result.model_dump_json(indent=2))
        return result


def _render_attempt(attempt: Trajectory, path: Path, camera_height: int) -> str | None:
    """Write the video of an attempt; the error's message if that failed, else None."""
    first = attempt.observations[0]
    try:
        recording = AttemptRecording(
            images={name: [o.images[name] for o in attempt.observations] for name in first.images},
            states=np.stack([o.state for o in attempt.observations]),
            actions=attempt.actions,
            joints=SO101_JOINTS,
            fps=attempt.fps,
            task=first.task,
            seed=attempt.seed,
            success=attempt.success,
        )
        write_video(path, lambda: rollout_frames(recording, camera_height), attempt.fps)
    except ReportError as e:
        if may_pass(e):
            raise
        return str(e)
    return None


def _recorded_frames(attempt: Trajectory) -> Iterator[RecordedFrame]:
    """Each observation with the action that followed it; the last observation has none."""
    for observation, action in zip(attempt.observations[:-1], attempt.actions, strict=True):
        yield RecordedFrame(observation.state, action, observation.images, observation.task)
