"""Episode videos: the camera images of recorded episodes, with the recorded and the predicted actions."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zk0.data.episode_reader import Episode, EpisodeReader
from zk0.errors import Zk0Error, first_line, may_pass
from zk0.evaluation.evaluation_sets import evaluation_examples
from zk0.evaluation.global_model import policy_with_weights
from zk0.evaluation.scores import draws_on_device
from zk0.evaluation.session_setup import SessionSetup
from zk0.policy.processors import action_scale
from zk0.records import Checkpoint, EpisodeVideo, Evaluation, SetScore, Statistics
from zk0.report.video.canvas import camera_rows
from zk0.report.video.encoder import write_video
from zk0.report.video.video_frames import PredictionRecording, prediction_frames
from zk0.settings.plans import VideoPlan
from zk0.settings.session import Session
from zk0.storage.atomic import atomic_write_text
from zk0.storage.results import read_episode_videos, remove_unfinished_videos, unused_video_path
from zk0.storage.session_folder import SessionFolder
from zk0.training.examples import EvaluationExamples


@dataclass(frozen=True)
class VideoRenderer:
    """Renders videos of one dataset's held-out episodes under one model.

    Args:
        policy: with the model's weights.
        examples: the frames that are evaluated.
        reader: reads the dataset.
        statistics: that the policy normalizes with.
        plan: number of episodes, size of the camera images, and time stamp of the files.
        seed_and_times: of the evaluation, so that the video shows the predictions that were evaluated.
        joints: names, in order.
        every_frames: N: of each episode, frames 0, N, 2N, ... were evaluated; only these have predictions.
        stop_late: called before each episode, batch of predictions and drawn frame; raises to end the video.
        retried: whether the caller renders again after an error that may pass, which is raised then.
    """

    policy: Any
    examples: EvaluationExamples
    reader: EpisodeReader
    statistics: Statistics
    plan: VideoPlan
    seed_and_times: tuple[int, int]
    joints: Sequence[str]
    every_frames: int
    retried: bool = False
    stop_late: Callable[[], None] | None = None

    def render(
        self, score: SetScore, round_and_checkpoint: tuple[int, str], client: str | None, base: Path, folder: Path
    ) -> tuple[EpisodeVideo, ...]:
        """Render the first evaluated episodes as `rollout_YYYYMMDD_HHMMSS.mp4`, each with a result, `.json`.

        A video that exists already is not rendered again. If one cannot be rendered, its result names the error, and
        the others are rendered all the same.

        Args:
            score: of this model on this dataset.
            round_and_checkpoint: number of the round, and digest of the model's weights.
            client: who holds the episodes out; None for an evaluation set of the server.
            base: results name their videos relative to this folder.
            folder: of results and videos.
        """
        round_number, checkpoint = round_and_checkpoint
        remove_unfinished_videos(folder)
        videos = {
            v.episode: v
            for v in read_episode_videos(folder)
            if (v.round, v.checkpoint, v.dataset) == (round_number, checkpoint, score.dataset)
        }
        episodes = list(dict.fromkeys(self.examples.episode_of_frame.tolist()))[: self.plan.episodes]
        for index in episodes:
            if index in videos:
                continue
            path = unused_video_path(folder, self.plan.timestamp)
            frames = int((self.examples.episode_of_frame == index).sum())
            numbers = _episode_numbers(score, index, self.reader.fps, frames)
            error = self._render_episode(index, numbers, round_number, path)
            videos[index] = EpisodeVideo(
                round=round_number,
                checkpoint=checkpoint,
                dataset=score.dataset,
                client=client,
                video=None if error else str(path.relative_to(base)),
                camera_rows=None if error else camera_rows(self.plan.camera_height),
                video_error=error,
                **numbers,
            )
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write_text(path.with_suffix(".json"), videos[index].model_dump_json(indent=2))
        return tuple(videos[index] for index in episodes)

    def _render_episode(self, index: int, numbers: Mapping[str, Any], round_number: int, path: Path) -> str | None:
        """Write the video of an episode; the error's message if that failed, else None."""
        try:
            self._stop_late()
            (episode,) = self.reader.read([index])
            caption = f"round {round_number}  ·  loss {_loss_text(numbers['policy_loss'])}"
            recording = self._recording(episode, caption)
            write_video(path, lambda: self._drawn(recording), self.reader.fps)
        except (Zk0Error, OSError, RuntimeError, MemoryError) as e:
            if self.retried and may_pass(e):
                raise
            return first_line(e)
        return None

    def _stop_late(self) -> None:
        if self.stop_late is not None:
            self.stop_late()

    def _drawn(self, recording: PredictionRecording) -> Iterator[NDArray[np.uint8]]:
        for frame in prediction_frames(recording, self.plan.camera_height):
            self._stop_late()
            yield frame

    def _recording(self, episode: Episode, note: str) -> PredictionRecording:
        return PredictionRecording(
            images={camera: self.reader.images(episode, camera) for camera in self.examples.cameras},
            recorded=episode.actions,
            predicted=chunks_of_frames(self._predict_chunks(episode), len(episode.actions), self.every_frames),
            joints=self.joints,
            fps=self.reader.fps,
            task=episode.tasks[0],
            episode=episode.index,
            note=note,
        )

    @torch.no_grad()
    def _predict_chunks(self, episode: Episode) -> NDArray[np.float64]:
        """Predicted chunks (frames, chunk, joints) of the evaluated frames in the dataset's units, with their draws."""
        is_evaluated = self.examples.frame_in_episode % self.every_frames == 0
        (at,) = np.nonzero((self.examples.episode_of_frame == episode.index) & is_evaluated)
        chunks = []
        for start in range(0, len(at), 32):
            self._stop_late()
            indices = at[start : start + 32].tolist()
            frames = [(episode.index, int(self.examples.frame_in_episode[i])) for i in indices]
            draws = draws_on_device(self.policy, *self.seed_and_times, frames)
            chunk = self.examples.predict_frames(self.policy, indices, draws)
            chunks.append(chunk.cpu().double().numpy())
        return action_scale(self.policy, self.statistics).restore(np.concatenate(chunks))


def chunks_of_frames(chunks: NDArray[np.float64], frames: int, every: int) -> NDArray[np.float64]:
    """The actions that are predicted in each of T frames: of the newest chunk, those from that frame on.

    All frames have as many, so frames with a chunk of their own do not have its end; after a chunk's end its last
    action holds.

    Args:
        chunks: predicted in frames 0, `every`, 2 `every`, ...: (ceil(T / every), chunk, joints).
        frames: T.
        every: frames from one chunk to the next.

    >>> chunks_of_frames(np.array([[[1.0], [2.0], [3.0]], [[6.0], [7.0], [8.0]]]), frames=3, every=2)[..., 0]
    array([[1., 2.],
           [2., 3.],
           [6., 7.]])
    """
    length = chunks.shape[1]
    at = np.arange(frames)
    steps = (at % every)[:, None] + np.arange(max(1, length - every + 1))
    predicted: NDArray[np.float64] = chunks[(at // every)[:, None], np.minimum(steps, length - 1)]
    return predicted


def render_evaluation_videos(
    session: Session,
    setup: SessionSetup,
    session_folder: SessionFolder,
    evaluated: tuple[Checkpoint, Evaluation],
    plan: VideoPlan,
) -> tuple[EpisodeVideo, ...]:
    """Render videos of the server's evaluation sets under the global model of a round.

    Args:
        session: the settings.
        setup: recipe, statistics and evaluation sets.
        session_folder: where results and videos are stored, and the weights lie.
        evaluated: the checkpoint of the round and its evaluation.
        plan: number of episodes, size of the camera images, and time stamp of the files.
    """
    checkpoint, evaluation = evaluated
    policy = policy_with_weights(session, setup.recipe, (session_folder.path / checkpoint.path, checkpoint.digest))
    seed_and_times, videos = (session.seed, session.evaluation.times), list[EpisodeVideo]()
    for one, score in zip(setup.sets, evaluation.sets, strict=True):
        examples = evaluation_examples(session, setup, policy, one)
        reader, joints = EpisodeReader(Path(one.root), one.rename_map), session.contract.joints
        statistics = setup.statistics_of(one.report)
        every = session.evaluation.every_frames
        renderer = VideoRenderer(
            policy, examples, reader, statistics, plan, seed_and_times, joints, every, retried=True
        )
        folder = session_folder.rollouts(checkpoint.round) / _folder_name(one.dataset)
        videos += renderer.render(score, (checkpoint.round, checkpoint.digest), None, session_folder.path, folder)
    return tuple(videos)


def _folder_name(dataset: str) -> str:
    """The last part of a dataset's name, as a folder name.

    >>> _folder_name("sim:lift-red"), _folder_name("hf:lab/so101"), _folder_name("local:/data/my set")
    ('lift-red', 'so101', 'my-set')
    """
    return re.sub(r"[^A-Za-z0-9_.-]", "-", re.split(r"[:/]", dataset.rstrip("/"))[-1]) or "set"


def _episode_numbers(score: SetScore, index: int, fps: float, frames: int) -> dict[str, Any]:
    """Fields of an EpisodeVideo; loss and error are None if no frame of the episode was evaluated."""
    episode = next((e for e in score.episodes if e.episode == index), None)
    return {
        "episode": index,
        "duration_seconds": frames / fps,
        "fps": fps,
        "policy_loss": episode.policy_loss if episode else None,
        "action_error_degrees": episode.action_error_degrees if episode else None,
    }


def _loss_text(loss: float | None) -> str:
    return "not measured" if loss is None else f"{loss:.3f}"
