"""How good is a global model on data that nobody trained on: the same number twice, to the bit."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zk0.errors import EvaluationError
from zk0.interval import weighted_mean
from zk0.records import EpisodeScore, SetScore, Statistics
from zk0.robot.prefix import flow_matching_losses, predict_chunk
from zk0.training.examples import CachedExamples


def stratified_times(count: int) -> list[float]:
    """The middle quantiles of SmolVLA's time distribution 0.001 + 0.999 Beta(1.5, 1).

    >>> [round(t, 3) for t in stratified_times(2)]
    [0.397, 0.826]
    """
    return [((i + 0.5) / count) ** (1 / 1.5) * 0.999 + 0.001 for i in range(count)]


def frame_noise(seed: int, episode: int, frame: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Noise ~ N(0, 1) that belongs to one frame of one episode, whatever batch it is in."""
    generator = np.random.Generator(np.random.Philox(key=[seed, (episode << 32) | frame]))
    return generator.standard_normal(shape, dtype=np.float32)


@dataclass
class _EpisodeSums:
    """Sums over the frames of one episode and the actions of their chunks that are not padding."""

    frames: int = 0
    actions: int = 0
    loss: float = 0.0
    """Over joints and times too."""
    error: float = 0.0
    """Over joints too."""


class _Sums:
    """Loss and action error summed by episode, joint and step of the horizon."""

    def __init__(self, joints: int, horizon: int) -> None:
        self.of: dict[int, _EpisodeSums] = {}
        self.error = np.zeros((horizon, joints))
        self.count = np.zeros((horizon, 1))

    def add(
        self,
        episodes: Sequence[int],
        losses: Sequence[float],
        error: NDArray[np.float64],
        valid: NDArray[np.bool_],
    ) -> None:
        """Of some frames: summed loss, absolute error (frames, horizon, joints) and what is not padding."""
        error = error * valid[:, :, None]
        self.error += error.sum(axis=0)
        self.count += valid.sum(axis=0)[:, None]
        frames = zip(losses, error.sum(axis=(1, 2)).tolist(), valid.sum(axis=1).tolist(), strict=True)
        for episode, (loss, wrong, actions) in zip(episodes, frames, strict=True):
            sums = self.of.setdefault(episode, _EpisodeSums())
            sums.frames += 1
            sums.actions += actions
            sums.loss += loss
            sums.error += wrong

    def episodes(self, times: int) -> tuple[EpisodeScore, ...]:
        """The means of every episode, in order."""
        joints = self.error.shape[1]
        return tuple(
            EpisodeScore(
                episode=episode,
                frames=s.frames,
                actions=s.actions,
                policy_loss=s.loss / (s.actions * joints * times),
                action_error_degrees=s.error / (s.actions * joints),
            )
            for episode, s in sorted(self.of.items())
        )


@torch.no_grad()
def score(
    policy: Any,
    examples: CachedExamples,
    statistics: Statistics,
    *,
    dataset: str,
    seed: int,
    times: int = 8,
    batch_size: int = 32,
    every_frames: int = 1,
) -> SetScore:
    """Policy loss and action error of one evaluation set, on frames 0, N, 2N, ... of its episodes (N: `every_frames`).

    The loss is the mean squared velocity error over all real (not padded) steps, joints and stratified
    times; its standard error is that of a ratio over episodes. The action error is the mean absolute error of the
    predicted chunk in the data's own units (degrees; gripper 0-100), joint by joint and step by step.

    Raises:
        EvaluationError: there is no frame, or a number is not finite.
    """
    policy.eval()
    chosen = np.flatnonzero(examples.frame_in_episode % every_frames == 0).tolist()
    if not chosen:
        raise EvaluationError(f"{dataset}: no frame to judge on")
    joints, horizon = examples.actions.shape[-1], policy.config.chunk_size
    sums = _Sums(joints, horizon)
    for start in range(0, len(chosen), batch_size):
        _score_batch(policy, examples, chosen[start : start + batch_size], (seed, times), statistics, sums)
    loss = sum(s.loss for s in sums.of.values()) / (sums.count.sum() * joints * times)
    error = float(sums.error.sum() / (sums.count.sum() * joints))
    if not np.isfinite([loss, error]).all():
        raise EvaluationError(f"{dataset}: policy loss {loss}, action error {error}; expected finite numbers")
    steps = sums.count[:, 0] > 0
    episodes = sums.episodes(times)
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
    examples: CachedExamples,
    indices: Sequence[int],
    seed_and_times: tuple[int, int],
    statistics: Statistics,
    sums: _Sums,
) -> None:
    seed, times = seed_and_times
    at = torch.as_tensor(indices)
    shape = (times + 1, policy.config.chunk_size, policy.config.max_action_dim)
    names = [(int(examples.episode_of_frame[i]), int(examples.frame_in_episode[i])) for i in indices]
    drawn = np.stack([frame_noise(seed, episode, frame, shape) for episode, frame in names])
    noise = torch.from_numpy(drawn).to(examples.states.device)
    valid = ~examples.padding[at]
    prefix = examples.prefix(indices)
    time = torch.tensor(stratified_times(times), device=noise.device).expand(len(indices), times)
    losses = flow_matching_losses(policy, prefix, examples.states[at], examples.actions[at], noise[:, :times], time)
    total = _masked_sum(losses[..., : examples.actions.shape[-1]], valid)
    predicted = predict_chunk(policy, prefix, examples.states[at], noise[:, times])
    degrees = predicted.cpu().double().numpy() * np.asarray(statistics.action.std) + np.asarray(statistics.action.mean)
    error = np.abs(degrees - examples.raw_chunks[list(indices)])
    sums.add([episode for episode, _ in names], total.tolist(), error, valid.cpu().numpy())


def _masked_sum(losses: Tensor, valid: Tensor) -> Tensor:
    """Over times, steps and joints of losses (frames, times, steps, joints), padding left out; (frames,)."""
    return (losses * valid[:, None, :, None]).double().sum(dim=(1, 2, 3)).cpu()


def composite(scores: Sequence[SetScore]) -> tuple[float, float | None, float]:
    """Mean policy loss over sets, its standard error (None where a set has none), and mean action error.

    >>> s = SetScore(dataset="a", episodes=(), frames=9, policy_loss=1.0, policy_loss_se=0.3,
    ...     action_error_degrees=4.0, joint_error_degrees=(), horizon_error_degrees=())
    >>> composite([s, s.model_copy(update={"policy_loss": 3.0, "policy_loss_se": 0.4})])
    (2.0, 0.25, 4.0)
    """
    errors = [s.policy_loss_se for s in scores]
    known = [e for e in errors if e is not None]
    error = sum(e * e for e in known) ** 0.5 / len(scores) if len(known) == len(scores) else None
    return fmean(s.policy_loss for s in scores), error, fmean(s.action_error_degrees for s in scores)
