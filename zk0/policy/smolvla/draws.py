"""SmolVLA's random numbers: noise and flow-matching times, of training batches and of evaluated frames."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zk0.policy.policy_kind import Draws

NOISE = "noise"
"""(frames, [times,] chunk, max_action_dim) ~ N(0, 1), of the loss."""
TIME = "time"
"""(frames[, times]) in (0, 1], of the loss."""
CHUNK_NOISE = "chunk_noise"
"""(frames, chunk, max_action_dim) ~ N(0, 1), of the prediction."""


def draw_noise_and_time(count: int, policy: Any, generator: torch.Generator) -> Draws:
    """Noise (count, chunk, max_action_dim) ~ N(0, 1) and time (count,) ~ 0.001 + 0.999 Beta(1.5, 1), as SmolVLA's.

    The generator is on the CPU, so the numbers are the same on every device.
    """
    noise = torch.randn(count, *_noise_shape(policy), generator=generator)
    return {NOISE: noise, TIME: torch.rand(count, generator=generator).pow(1 / 1.5) * 0.999 + 0.001}


def fixed_noise_and_times(policy: Any, seed: int, frames: Sequence[tuple[int, int]], times: int) -> Draws:
    """Noise and stratified times of evaluated frames (episode, frame); the last noise is the prediction's."""
    shape = (times + 1, *_noise_shape(policy))
    drawn = torch.from_numpy(np.stack([frame_noise(seed, episode, frame, shape) for episode, frame in frames]))
    time = torch.tensor(stratified_times(times)).expand(len(frames), times)
    return {NOISE: drawn[:, :-1], TIME: time, CHUNK_NOISE: drawn[:, -1]}


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


def chunk_noise(policy: Any, generators: Sequence[torch.Generator]) -> Draws:
    """The noise of one prediction from each generator."""
    return {CHUNK_NOISE: torch.stack([torch.randn(*_noise_shape(policy), generator=one) for one in generators])}


def _noise_shape(policy: Any) -> tuple[int, int]:
    return policy.config.chunk_size, policy.config.max_action_dim
