"""A block of every update at a time, in memory that each thread uses again and again."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.aggregation.blocks import Block
from zk0.weights import Source

_READ_VALUES = 1 << 20
"""Values of all updates together that a thread reads at a time: 4 MiB of float32."""
_PART_VALUES = 1 << 18
"""Values of all updates together that it computes with at a time: 2 MiB of float64 stay in a core's caches."""
_DOT_VALUES = 8192
"""Longer inner products would be given to BLAS's own threads, whose number decides the last bits."""


@dataclass(frozen=True)
class Part:
    """Some values of one tensor: those of each update (updates, n), and the old ones (n,), in the tensor's dtype."""

    values: NDArray[Any]
    old: NDArray[Any]
    where: slice
    """Within the block."""


class Reader:
    """The updates of a round and the weights that they start from; may be used by several threads at once."""

    def __init__(self, anchor: Source, sources: Sequence[Source]) -> None:
        self.anchor, self.sources = anchor, sources
        self._part = max(1024, min(2 * _DOT_VALUES, _PART_VALUES // len(sources) // 1024 * 1024))
        self.length = max(1, _READ_VALUES // len(sources) // self._part) * self._part
        """Values of each update that a block holds: it depends on their number only, so that bits do too."""
        self.scratch = Scratch()

    def parts(self, block: Block) -> Iterator[Part]:
        """The values of a block, so many at a time as a core's caches hold; each part overwrites the block before."""
        dtype = np.dtype(self.anchor.specs[block.name].dtype)
        old = self.scratch.array("old", dtype, block.length)
        values = self.scratch.array("values", dtype, len(self.sources), block.length)
        self.anchor.read(block.name, block.start, old)
        for source, row in zip(self.sources, values, strict=True):
            source.read(block.name, block.start, row)
        for start in range(0, block.length, self._part):
            where = slice(start, min(start + self._part, block.length))
            yield Part(values[:, where], old[where], where)

    def steps(self, part: Part) -> NDArray[Any]:
        """Each update's way from the old values (updates, n): float32, unless the weights are wider."""
        dtype = np.promote_types(part.old.dtype, np.float32)
        steps = self.scratch.array("steps", dtype, *part.values.shape)
        return np.subtract(part.values, part.old, out=steps)


def inner_products(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Of the last axis: summed in the arrays' dtype over 8192 values at a time, and in float64 over those sums."""
    pieces = (slice(start, start + _DOT_VALUES) for start in range(0, a.shape[-1], _DOT_VALUES))
    return np.asarray(sum(np.vecdot(a[..., piece], b[..., piece]).astype(np.float64) for piece in pieces))


class Scratch(threading.local):
    """Memory of each thread, by name."""

    def array(self, name: str, dtype: np.dtype[Any], *shape: int) -> NDArray[Any]:
        """An array with the values that were left in it."""
        size, key = prod(shape), f"{name} {dtype}"
        kept = vars(self).get(key)
        if kept is None or kept.size < size:
            kept = vars(self)[key] = np.empty(size, dtype)
        return kept[:size].reshape(shape)
