"""Recorded episodes on film: what the cameras saw, what was done, and what a policy would have done."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zk0.errors import Zk0Error
from zk0.folder import SessionFolder, write_whole
from zk0.records import Checkpoint, EpisodeFilm, EpisodeScore, Evaluation, SetScore, Statistics
from zk0.report.canvas import camera_rows
from zk0.report.frames import Prediction, prediction_frames
from zk0.report.video import write_video
from zk0.results import free_path, read_films, remove_halves
from zk0.robot.dataset import Episode, EpisodeReader
from zk0.robot.prefix import predict_chunk
from zk0.session import EvaluationPlan, FilmPlan, Session
from zk0.training.client import Client
from zk0.training.evaluate import frame_noise
from zk0.training.examples import CachedExamples
from zk0.training.judge import Ground, examples_of, policy_with


@dataclass(frozen=True)
class Studio:
    """Films the judging episodes of one data set under one model.

    Args:
        policy: with the model's weights in it.
        examples: the frames that judge, of the episodes of `reader`.
        statistics: that they are normalised with.
        plan: how many episodes, how large, and when.
        seed_and_times: of the evaluation, so that what is seen is what was measured.
        joints: names, in order.
    """

    policy: Any
    examples: CachedExamples
    reader: EpisodeReader
    statistics: Statistics
    plan: FilmPlan
    seed_and_times: tuple[int, int]
    joints: Sequence[str]

    def film(
        self, score: SetScore, round_and_checkpoint: tuple[int, str], client: str | None, base: Path, folder: Path
    ) -> tuple[EpisodeFilm, ...]:
        """The first judging episodes of the set, each as `folder`/rollout_YYYYMMDD_HHMMSS.mp4 with its numbers beside
        it. Films that lie there already are not made again; one that cannot be made is told and fails nothing."""
        round_number, checkpoint = round_and_checkpoint
        remove_halves(folder)
        kept = {
            f.episode: f
            for f in read_films(folder)
            if (f.round, f.checkpoint, f.dataset) == (round_number, checkpoint, score.dataset)
        }
        found: list[EpisodeFilm] = []
        for index in dict.fromkeys(self.examples.episode_of_frame.tolist()):
            if len(found) == self.plan.episodes:
                break
            if index not in kept:
                path = free_path(folder, self.plan.when)
                about = _about(score, index, self.reader.fps, int((self.examples.episode_of_frame == index).sum()))
                fault = self._try(index, about, round_number, path)
                kept[index] = EpisodeFilm(
                    round=round_number,
                    checkpoint=checkpoint,
                    dataset=score.dataset,
                    client=client,
                    video=None if fault else str(path.relative_to(base)),
                    camera_rows=None if fault else camera_rows(self.plan.camera_height),
                    video_fault=fault,
                    **about,
                )
                folder.mkdir(parents=True, exist_ok=True)
                write_whole(path.with_suffix(".json"), kept[index].model_dump_json(indent=2))
            found.append(kept[index])
        return tuple(found)

    def _try(self, index: int, about: Mapping[str, Any], round_number: int, path: Path) -> str | None:
        """Why the episode could not be filmed; None if it was."""
        try:
            (episode,) = self.reader.read([index])
            film = self._prediction(episode, f"round {round_number}  ·  loss {_shown(about['policy_loss'])}")
            write_video(path, prediction_frames(film, self.plan.camera_height), self.reader.fps)
        except (Zk0Error, OSError, RuntimeError, MemoryError) as e:
            return next(iter(str(e).strip().splitlines()), type(e).__name__)
        return None

    def _prediction(self, episode: Episode, note: str) -> Prediction:
        pixels = {c: self.reader.frames(episode, c).transpose(0, 2, 3, 1) for c in self.examples.cameras}
        return Prediction(
            images={camera: list(frames) for camera, frames in pixels.items()},
            recorded=episode.actions,
            predicted=self._predicted(episode),
            joints=self.joints,
            fps=self.reader.fps,
            task=episode.tasks[0],
            episode=episode.index,
            note=note,
        )

    @torch.no_grad()
    def _predicted(self, episode: Episode) -> NDArray[np.float64]:
        """(T, chunk, joints) in the data's units, from the noise that the evaluation predicts with."""
        config, (seed, times) = self.policy.config, self.seed_and_times
        shape = (times + 1, config.chunk_size, config.max_action_dim)
        (at,) = np.nonzero(self.examples.episode_of_frame == episode.index)
        chunks = []
        for start in range(0, len(at), 32):
            indices = at[start : start + 32].tolist()
            frames = [int(self.examples.frame_in_episode[i]) for i in indices]
            noise = np.stack([frame_noise(seed, episode.index, frame, shape)[times] for frame in frames])
            states = self.examples.states[torch.as_tensor(indices)]
            drawn = torch.from_numpy(noise).to(states.device)
            chunks.append(
                predict_chunk(self.policy, self.examples.prefix(indices), states, drawn).cpu().double().numpy()
            )
        action = self.statistics.action
        predicted: NDArray[np.float64] = np.concatenate(chunks) * np.asarray(action.std) + np.asarray(action.mean)
        return predicted


def film_held_out(client: Client, plan: EvaluationPlan, weights: Path, score: SetScore) -> tuple[EpisodeFilm, ...]:
    """A client's held-out episodes, filmed as the plan asks; they stay on its machine.

    Raises:
        CheckpointError: the weights are not those that the plan names.
    """
    if plan.film is None:
        return ()
    policy = client.policy_with(plan, weights)
    statistics, drawn = plan.statistics or client.statistics, (plan.terms.seed, plan.times)
    examples, joints = client.held_out(plan, policy), plan.terms.contract.joints
    studio = Studio(policy, examples, client.reader, statistics, plan.film, drawn, joints)
    base = client.films or client.scratch
    folder = base / "evaluate" / f"round_{plan.round}" / client.name
    return studio.film(score, (plan.round, plan.global_digest), client.name, base, folder)


def film_sets(
    session: Session, ground: Ground, here: SessionFolder, judged: tuple[Checkpoint, Evaluation], plan: FilmPlan
) -> tuple[EpisodeFilm, ...]:
    """The sets that the server judges on, filmed under the model of one round."""
    checkpoint, evaluation = judged
    policy = policy_with(session, ground.recipe, (here.path / checkpoint.path, checkpoint.digest))
    drawn, found = (session.seed, session.evaluation.times), list[EpisodeFilm]()
    for one, score in zip(ground.sets, evaluation.sets, strict=True):
        examples, reader = examples_of(session, ground, policy, one), EpisodeReader(Path(one.root), one.rename_map)
        studio = Studio(policy, examples, reader, ground.statistics, plan, drawn, session.contract.joints)
        folder = here.rollouts(checkpoint.round) / _folder_name(one.dataset)
        found += studio.film(score, (checkpoint.round, checkpoint.digest), None, here.path, folder)
    return tuple(found)


def _folder_name(dataset: str) -> str:
    """The last part of a data set's name, as a folder may be called.

    >>> _folder_name("sim:lift-red"), _folder_name("hf:lab/so101"), _folder_name("local:/data/my set")
    ('lift-red', 'so101', 'my-set')
    """
    return re.sub(r"[^A-Za-z0-9_.-]", "-", re.split(r"[:/]", dataset.rstrip("/"))[-1]) or "set"


def _about(score: SetScore, index: int, fps: float, frames: int) -> dict[str, Any]:
    judged: EpisodeScore | None = next((e for e in score.episodes if e.episode == index), None)
    return {
        "episode": index,
        "duration_seconds": frames / fps,
        "fps": fps,
        "policy_loss": judged.policy_loss if judged else None,
        "action_error_degrees": judged.action_error_degrees if judged else None,
    }


def _shown(loss: float | None) -> str:
    return "not measured" if loss is None else f"{loss:.3f}"
