"""Batches of a client's local training: seeds, number of steps, order of frames, noise and times."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor


def round_seed(seed: int, round_number: int, client: str) -> int:
    """A seed for one client in one round, the same on every engine and in every attempt.

    Args:
        seed: of the session.
        round_number: of the round.
        client: the client's name, or another name of what the seed is for.

    >>> round_seed(42, 1, "client_0") == round_seed(42, 1, "client_0") != round_seed(42, 2, "client_0")
    True
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{round_number}/{client}".encode()).digest()[:7])


def count_steps(frames: int, batch_size: int, local_steps: int | None, local_epochs: int | None) -> int:
    """Optimizer steps of one round: `local_steps`, or enough for `local_epochs` passes over all frames.

    >>> count_steps(frames=100, batch_size=32, local_steps=None, local_epochs=2)
    8
    """
    if local_steps is not None:
        return local_steps
    if local_epochs is None:
        raise AssertionError("neither local_steps nor local_epochs is set")
    return local_epochs * -(-frames // batch_size)


def shuffled_batches(frames: int, batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Endless batches of frame indices: each pass over all frames has a new order; its last batch may be short."""
    while True:
        order = torch.randperm(frames, generator=generator).tolist()
        for start in range(0, frames, batch_size):
            yield order[start : start + batch_size]


def even_batches(frames: int, samples: int, steps: int, generator: torch.Generator) -> Iterator[list[int]]:
    """`steps` batches of nearly equal size with `samples` frame indices in total; each pass has a new order.

    >>> [len(b) for b in even_batches(frames=5, samples=13, steps=4, generator=torch.Generator().manual_seed(0))]
    [3, 3, 4, 3]
    """
    order: list[int] = []
    edges = np.linspace(0, samples, steps + 1).round().astype(int)
    for size in np.diff(edges).tolist():
        while len(order) < size:
            order += torch.randperm(frames, generator=generator).tolist()
        yield order[:size]
        del order[:size]


def draw_noise_and_time(count: int, policy: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise (count, chunk, max_action_dim) ~ N(0, 1) and time (count,) ~ 0.001 + 0.999 Beta(1.5, 1), as SmolVLA's.

    The generator is on the CPU, so the numbers are the same on every device.
    """
    noise, time = _draw_on_host(count, policy, generator)
    return noise.to(policy.config.device), time.to(policy.config.device)


def draw_batches(
    batches: Iterator[list[int]], steps: int, policy: Any, generator: torch.Generator
) -> Iterator["Batch"]:
    """The first `steps` batches with their noise and times, in the host's memory.

    Args:
        batches: frame indices; may draw from the same generator.
        steps: number of batches.
        policy: decides the size of the noise.
        generator: of noise and times.
    """
    for indices in islice(batches, steps):
        yield Batch(indices, *_draw_on_host(len(indices), policy, generator))


def _draw_on_host(count: int, policy: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    noise = torch.randn(count, policy.config.chunk_size, policy.config.max_action_dim, generator=generator)
    return noise, torch.rand(count, generator=generator).pow(1 / 1.5) * 0.999 + 0.001


@dataclass(frozen=True)
class Batch:
    """Frames of one optimizer step with their noise and times."""

    indices: Sequence[int]
    noise: Tensor
    """(batch, chunk, max_action_dim)."""
    time: Tensor
    """(batch,)."""

    def split(self, count: int) -> Iterator["Batch"]:
        """The batch in `count` pieces of nearly equal size, or in fewer: no piece is empty."""
        edges = np.linspace(0, len(self.indices), min(count, len(self.indices)) + 1).round().astype(int).tolist()
        for start, end in pairwise(edges):
            yield Batch(self.indices[start:end], self.noise[start:end], self.time[start:end])
