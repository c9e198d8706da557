"""Batches of a client's local training: seeds, number of steps, order of frames, random numbers of the loss."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch

from zk0.policy.kinds import kind_of
from zk0.policy.policy_kind import Draws


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


def draw_batches(
    batches: Iterator[list[int]], steps: int, policy: Any, generator: torch.Generator
) -> Iterator["Batch"]:
    """The first `steps` batches with the random numbers of their losses, in the host's memory.

    Args:
        batches: frame indices; may draw from the same generator.
        steps: number of batches.
        policy: whose kind decides what is drawn.
        generator: of the random numbers.
    """
    kind = kind_of(policy)
    for indices in islice(batches, steps):
        yield Batch(indices, kind.training_draws(policy, len(indices), generator))


@dataclass(frozen=True)
class Batch:
    """Frames of one optimizer step with the random numbers of their loss."""

    indices: Sequence[int]
    draws: Draws

    def split(self, count: int) -> Iterator["Batch"]:
        """The batch in `count` pieces of nearly equal size, or in fewer: no piece is empty."""
        edges = np.linspace(0, len(self.indices), min(count, len(self.indices)) + 1).round().astype(int).tolist()
        for start, end in pairwise(edges):
            yield self.cut(slice(start, end))

    def cut(self, frames: slice) -> "Batch":
        """The batch of some of the frames."""
        return Batch(self.indices[frames], {name: drawn[frames] for name, drawn in self.draws.items()})
