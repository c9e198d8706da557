"""A block of every update at a time, in memory that each thread uses again and again."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.aggregation.blocks import Block
from zk0.aggregation.kernels import TILE
from zk0.weights import Source

_READ_VALUES = 1 << 20
"""Values of all updates together that a thread reads at a time: 4 MiB of float32."""


@dataclass(frozen=True)
class Part:
    """The values of a block: those of each update (updates, n), and the old ones (n,), in the tensor's dtype."""

    values: NDArray[Any]
    old: NDArray[Any]


class Reader:
    """The updates of a round and the weights that they start from; may be used by several threads at once."""

    def __init__(self, anchor: Source, sources: Sequence[Source]) -> None:
        self.anchor, self.sources = anchor, sources
        self.length = max(1, _READ_VALUES // len(sources) // TILE) * TILE
        """Values of each update that a block holds: it depends on their number only, so that bits do too."""
        self.scratch = Scratch()

    def read(self, block: Block) -> Part:
        """The values of a block; they overwrite those of the block before."""
        dtype = np.dtype(self.anchor.specs[block.name].dtype)
        old = self.scratch.array("old", dtype, block.length)
        values = self.scratch.array("values", dtype, len(self.sources), block.length)
        self.anchor.read(block.name, block.start, old)
        for source, row in zip(self.sources, values, strict=True):
            source.read(block.name, block.start, row)
        return Part(values, old)


class Scratch(threading.local):
    """Memory of each thread, by name."""

    def array(self, name: str, dtype: np.dtype[Any], *shape: int) -> NDArray[Any]:
        """An array with the values that were left in it."""
        size, key = prod(shape), f"{name} {dtype}"
        kept = vars(self).get(key)
        if kept is None or kept.size < size:
            kept = vars(self)[key] = np.empty(size, dtype)
        return kept[:size].reshape(shape)
