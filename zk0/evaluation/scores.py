"""Scores of a policy on an evaluation set: flow-matching loss and action error, reproducible to the bit.

Noise and times of each frame are fixed by seed, episode and frame, not drawn from a running generator. So the same
weights get the same numbers in every evaluation, and rounds are comparable.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zk0.errors import EvaluationError
from zk0.records import EpisodeScore, SetScore, Statistics
from zk0.stats.intervals import weighted_mean
from zk0.training.examples import EvaluationExamples


def stratified_times(count: int) -> list[float]:
    """The middle quantiles of SmolVLA's time distribution 0.001 + 0.999 Beta(1.5, 1).

    >>> [round(t, 3) for t in stratified_times(2)]
    [0.397, 0.826]
    """
    return [((i + 0.5) / count) ** (1 / 1.5) * 0.999 + 0.001 for i in range(count)]


def frame_noise(seed: int, episode: int, frame: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Noise ~ N(0, 1) of one frame of one episode, the same in every batch."""
    generator = np.random.Generator(np.random.Philox(key=[seed, (episode << 32) | frame]))
    return generator.standard_normal(shape, dtype=np.float32)


@dataclass
class _EpisodeSums:
    """Sums over the frames of one episode."""

    frames: int = 0
    actions: int = 0
    """Actions of the frames' chunks that are not padding."""
    loss: float = 0.0
    """Squared velocity errors, summed over actions, joints and times."""
    error: float = 0.0
    """Absolute errors of the predicted actions, summed over actions and joints."""


class _ScoreAccumulator:
    """Loss and action error summed by episode, joint and step of the horizon."""

    def __init__(self, joints: int, horizon: int) -> None:
        self.by_episode: dict[int, _EpisodeSums] = {}
        self.error = np.zeros((horizon, joints))
        self.count = np.zeros((horizon, 1))

    def add(
        self,
        episodes: Sequence[int],
        losses: Sequence[float],
        error: NDArray[np.float64],
        valid: NDArray[np.bool_],
    ) -> None:
        """Add a batch of frames.

        Args:
            episodes: of each frame.
            losses: of each frame, summed over times, actions and joints.
            error: (frames, horizon, joints) absolute errors.
            valid: (frames, horizon) False where padded.
        """
        error = error * valid[:, :, None]
        self.error += error.sum(axis=0)
        self.count += valid.sum(axis=0)[:, None]
        frames = zip(losses, error.sum(axis=(1, 2)).tolist(), valid.sum(axis=1).tolist(), strict=True)
        for episode, (loss, frame_error, actions) in zip(episodes, frames, strict=True):
            sums = self.by_episode.setdefault(episode, _EpisodeSums())
            sums.frames += 1
            sums.actions += actions
            sums.loss += loss
            sums.error += frame_error

    def episode_scores(self, times: int) -> tuple[EpisodeScore, ...]:
        """The means of each episode, in order."""
        joints = self.error.shape[1]
        return tuple(
            EpisodeScore(
                episode=episode,
                frames=s.frames,
                actions=s.actions,
                policy_loss=s.loss / (s.actions * joints * times),
                action_error_degrees=s.error / (s.actions * joints),
            )
            for episode, s in sorted(self.by_episode.items())
        )


@torch.no_grad()
def score_policy(
    policy: Any,
    examples: EvaluationExamples,
    statistics: Statistics,
    *,
    dataset: str,
    seed: int,
    times: int = 8,
    batch_size: int = 32,
    every_frames: int = 1,
) -> SetScore:
    """Policy loss and action error of a policy on an evaluation set.

    The loss is the mean squared velocity error over all actions that are not padding, joints and stratified times; its
    standard error is that of a ratio over episodes. The action error is the mean absolute error of the predicted chunk
    in the dataset's units (degrees; gripper 0-100), also by joint and by step of the chunk.

    Args:
        policy: with the weights to evaluate.
        examples: the frames of the evaluation set.
        statistics: that the policy normalizes with.
        dataset: written into the result.
        seed: of the noise.
        times: flow-matching times of each frame.
        batch_size: frames at a time.
        every_frames: N: only frames 0, N, 2N, ... of each episode are evaluated.

    Raises:
        EvaluationError: the set has no frame, or a number is not finite.
    """
    policy.eval()
    chosen = np.flatnonzero(examples.frame_in_episode % every_frames == 0).tolist()
    if not chosen:
        raise EvaluationError(f"{dataset}: no frame to evaluate on")
    joints, horizon = examples.raw_chunks.shape[-1], policy.config.chunk_size
    sums = _ScoreAccumulator(joints, horizon)
    for start in range(0, len(chosen), batch_size):
        _score_batch(policy, examples, chosen[start : start + batch_size], (seed, times), statistics, sums)
    loss = sum(s.loss for s in sums.by_episode.values()) / (sums.count.sum() * joints * times)
    error = float(sums.error.sum() / (sums.count.sum() * joints))
    if not np.isfinite([loss, error]).all():
        raise EvaluationError(f"{dataset}: policy loss {loss}, action error {error}; expected finite numbers")
    steps = sums.count[:, 0] > 0
    episodes = sums.episode_scores(times)
    return SetScore(
        dataset=dataset,
        episodes=episodes,
        frames=len(chosen),
        policy_loss=float(loss),
        policy_loss_se=weighted_mean([e.policy_loss for e in episodes], [e.actions for e in episodes]).se,
        action_error_degrees=error,
        joint_error_degrees=tuple((sums.error.sum(axis=0) / sums.count.sum()).tolist()),
        horizon_error_degrees=tuple((sums.error.sum(axis=1)[steps] / (sums.count[steps, 0] * joints)).tolist()),
    )


def _score_batch(
    policy: Any,
    examples: EvaluationExamples,
    indices: Sequence[int],
    seed_and_times: tuple[int, int],
    statistics: Statistics,
    sums: _ScoreAccumulator,
) -> None:
    """Add the scores of some frames; the first `times` noises of a frame are for the loss, the last for its chunk."""
    seed, times = seed_and_times
    device = torch.device(policy.config.device)
    shape = (times + 1, policy.config.chunk_size, policy.config.max_action_dim)
    frames = [(int(examples.episode_of_frame[i]), int(examples.frame_in_episode[i])) for i in indices]
    drawn = np.stack([frame_noise(seed, episode, frame, shape) for episode, frame in frames])
    time = torch.tensor(stratified_times(times), device=device).expand(len(indices), times)
    total, predicted = examples.score_frames(policy, indices, torch.from_numpy(drawn).to(device), time)
    degrees = predicted.cpu().double().numpy() * np.asarray(statistics.action.std) + np.asarray(statistics.action.mean)
    error = np.abs(degrees - examples.raw_chunks[list(indices)])
    valid = ~examples.padding[torch.as_tensor(indices)]
    sums.add([episode for episode, _ in frames], total.tolist(), error, valid.cpu().numpy())


def composite_score(scores: Sequence[SetScore]) -> tuple[float, float | None, float]:
    """Mean policy loss over sets, its standard error (None if a set has none), and mean action error.

    The sets are independent, so the standard error is the square root of the sum of squares, divided by their number.

    >>> s = SetScore(dataset="a", episodes=(), frames=9, policy_loss=1.0, policy_loss_se=0.3,
    ...     action_error_degrees=4.0, joint_error_degrees=(), horizon_error_degrees=())
    >>> composite_score([s, s.model_copy(update={"policy_loss": 3.0, "policy_loss_se": 0.4})])
    (2.0, 0.25, 4.0)
    """
    errors = [s.policy_loss_se for s in scores]
    known = [e for e in errors if e is not None]
    error = sum(e * e for e in known) ** 0.5 / len(scores) if len(known) == len(scores) else None
    return fmean(s.policy_loss for s in scores), error, fmean(s.action_error_degrees for s in scores)
