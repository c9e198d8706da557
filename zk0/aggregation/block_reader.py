"""Read one block of every update at a time, into memory that each thread reuses."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.aggregation.blocks import Block
from zk0.aggregation.kernels import TILE
from zk0.weights.files import WeightsSource

_VALUES_PER_READ = 1 << 20
"""Values of all updates together that a thread reads at a time: 4 MiB of float32."""


@dataclass(frozen=True)
class BlockValues:
    """The values of a block in the tensor's dtype.

    Attributes:
        values: of each update (updates, n).
        old: of the global weights that the updates were trained from (n,).
    """

    values: NDArray[Any]
    old: NDArray[Any]


class BlockReader:
    """Reads blocks of a round's updates and of their global weights; several threads may use it at once."""

    def __init__(self, global_weights: WeightsSource, sources: Sequence[WeightsSource]) -> None:
        self.global_weights, self.sources = global_weights, sources
        self.length = max(1, _VALUES_PER_READ // len(sources) // TILE) * TILE
        """Values per block. It depends on the number of updates alone, so that the bits of all sums do, too."""
        self.scratch = ScratchArrays()

    def read(self, block: Block) -> BlockValues:
        """Return the values of a block; they overwrite those of the thread's previous block."""
        dtype = np.dtype(self.global_weights.specs[block.name].dtype)
        old = self.scratch.array("old", dtype, block.length)
        values = self.scratch.array("values", dtype, len(self.sources), block.length)
        self.global_weights.read(block.name, block.start, old)
        for source, row in zip(self.sources, values, strict=True):
            source.read(block.name, block.start, row)
        return BlockValues(values, old)


class ScratchArrays(threading.local):
    """Arrays that each thread reuses, by name."""

    def array(self, name: str, dtype: np.dtype[Any], *shape: int) -> NDArray[Any]:
        """Return an array of this shape; its values are undefined."""
        size, key = prod(shape), f"{name} {dtype}"
        buffer = vars(self).get(key)
        if buffer is None or buffer.size < size:
            buffer = vars(self)[key] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)
