"""Scores of a policy on an evaluation set: its own loss and the action error, reproducible to the bit.

The random numbers of each frame are fixed by seed, episode and frame, not drawn from a running generator. So the same
weights get the same numbers in every evaluation, and rounds are comparable.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zk0.errors import EvaluationError
from zk0.policy.kinds import kind_of
from zk0.policy.policy_kind import Draws
from zk0.policy.processors import action_scale
from zk0.records import EpisodeScore, SetScore, Statistics
from zk0.stats.intervals import weighted_mean
from zk0.training.examples import EvaluationExamples


@dataclass
class _EpisodeSums:
    """Sums over the frames of one episode."""

    frames: int = 0
    actions: int = 0
    """Actions of the frames' chunks that are not padding."""
    loss: float = 0.0
    """The policy's losses, summed over actions, joints and times."""
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
    on_batch: Callable[[], None] | None = None,
) -> SetScore:
    """Policy loss and action error of a policy on an evaluation set.

    The loss is the mean of the policy's own loss over all actions that are not padding, joints and times; its standard
    error is that of a ratio over episodes. The action error is the mean absolute error of the predicted chunk
    in the dataset's units (degrees; gripper 0-100), also by joint and by step of the chunk.

    Args:
        policy: with the weights to evaluate.
        examples: the frames of the evaluation set.
        statistics: that the policy normalizes with.
        dataset: written into the result.
        seed: of the random numbers.
        times: draws of each frame's loss; for SmolVLA flow-matching times.
        batch_size: frames at a time.
        every_frames: N: only frames 0, N, 2N, ... of each episode are evaluated.
        on_batch: called after each batch of frames.

    Raises:
        EvaluationError: the set has no frame, or a number is not finite.
    """
    policy.eval()
    chosen = np.flatnonzero(examples.frame_in_episode % every_frames == 0).tolist()
    if not chosen:
        raise EvaluationError(f"{dataset}: no frame to evaluate on")
    horizon, joints = examples.raw_chunks.shape[1:]
    sums = _ScoreAccumulator(joints, horizon)
    for start in range(0, len(chosen), batch_size):
        _score_batch(policy, examples, chosen[start : start + batch_size], (seed, times), statistics, sums)
        if on_batch:
            on_batch()
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
    """Add the scores of some frames."""
    frames = [(int(examples.episode_of_frame[i]), int(examples.frame_in_episode[i])) for i in indices]
    draws = draws_on_device(policy, *seed_and_times, frames)
    total, predicted = examples.score_frames(policy, indices, draws)
    degrees = action_scale(policy, statistics).restore(predicted.cpu().double().numpy())
    error = np.abs(degrees - examples.raw_chunks[list(indices)])
    valid = ~examples.padding[torch.as_tensor(indices)]
    sums.add([episode for episode, _ in frames], total.tolist(), error, valid.cpu().numpy())


def draws_on_device(policy: Any, seed: int, times: int, frames: Sequence[tuple[int, int]]) -> Draws:
    """The fixed random numbers of evaluated frames (episode, frame), on the policy's device."""
    drawn = kind_of(policy).evaluation_draws(policy, seed, frames, times)
    return {name: one.to(policy.config.device) for name, one in drawn.items()}


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
