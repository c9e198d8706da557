"""One block of all updates folded into one block of the new weights, and what it says of each update."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.aggregation.blocks import Block
from zk0.weights import Source

_READ_VALUES = 1 << 20
"""Values of all updates together that a thread reads at a time: 4 MiB of float32."""
_WIDE_VALUES = 1 << 18
"""Values of all updates together that it widens at a time: 2 MiB of float64, which stay in a core's caches."""
_FLOAT64 = np.dtype(np.float64)
_DOT_VALUES = 8192
"""Longer inner products would be given to BLAS's own threads, whose number decides the last bits."""


@dataclass
class Sums:
    """Inner products of steps away from the old weights, over the values folded so far.

    `step` is ||new - old||^2; `squares` ||update - old||^2 and `products` <update - old, new - old> of each update.
    """

    step: float
    squares: NDArray[np.float64]
    products: NDArray[np.float64]

    @classmethod
    def none(cls, updates: int) -> "Sums":
        """Before the first value."""
        return cls(0.0, np.zeros(updates), np.zeros(updates))

    def add(self, other: "Sums") -> None:
        """Take in those of more values; the order of the calls decides the last bits."""
        self.step += other.step
        self.squares += other.squares
        self.products += other.products


class Fold:
    """Means of many updates, weighted by `examples`; may be called from several threads at once."""

    def __init__(self, anchor: Source, sources: Sequence[Source], examples: Sequence[int]) -> None:
        self._anchor, self._sources = anchor, sources
        self._examples = np.array(examples, np.float64)
        self._part = max(1024, min(2 * _DOT_VALUES, _WIDE_VALUES // len(sources) // 1024 * 1024))
        parts = max(1, _READ_VALUES // len(sources) // self._part)
        self.length = parts * self._part
        """Values of each update that are read at a time: it depends on their number only, so that bits do too."""
        self._scratch = Scratch()

    def __call__(self, block: Block) -> tuple[NDArray[Any], Sums]:
        """The new values of a block, in the dtype of the old ones, and its sums."""
        dtype = np.dtype(self._anchor.specs[block.name].dtype)
        old = self._scratch.array("old", dtype, block.length)
        read = self._scratch.array("read", dtype, len(self._sources), block.length)
        self._anchor.read(block.name, block.start, old)
        for source, row in zip(self._sources, read, strict=True):
            source.read(block.name, block.start, row)
        new, sums = np.empty(block.length, dtype), Sums.none(len(self._sources))
        with np.errstate(invalid="ignore", over="ignore"):  # sums that are not finite tell of it
            for start in range(0, block.length, self._part):
                part = slice(start, start + self._part)
                new[part] = self._mean(read[:, part])
                sums.add(self._measure(read[:, part], old[part], new[part]))
        return new, sums

    def _mean(self, values: NDArray[Any]) -> NDArray[np.float64]:
        wide = self._scratch.array("wide", _FLOAT64, *values.shape)
        np.copyto(wide, values)
        mean = np.einsum("i,ij->j", self._examples, wide)
        if np.count_nonzero(mean.view(np.int64)) < mean.size:  # sums begin with 0.0, and 0.0 + -0.0 loses the sign
            zero = mean == 0
            mean[zero] = np.where(np.signbit(wide[:, zero]).all(axis=0), -0.0, 0.0)
        mean /= self._examples.sum()
        return mean

    def _measure(self, values: NDArray[Any], old: NDArray[Any], new: NDArray[Any]) -> Sums:
        """Steps are float32 (unless the weights are wider), which leaves their sums seven good digits."""
        dtype = np.promote_types(old.dtype, np.float32)
        step = np.subtract(new, old, dtype=dtype)
        steps = self._scratch.array("steps", dtype, *values.shape)
        np.subtract(values, old, out=steps)
        return Sums(float(inner_products(step, step)), inner_products(steps, steps), inner_products(steps, step))


def inner_products(a: NDArray[Any], b: NDArray[Any]) -> Any:
    """Of the last axis: summed in the arrays' dtype over 8192 values at a time, and in float64 over those sums."""
    pieces = (slice(start, start + _DOT_VALUES) for start in range(0, a.shape[-1], _DOT_VALUES))
    return sum(np.vecdot(a[..., piece], b[..., piece]).astype(np.float64) for piece in pieces)


class Scratch(threading.local):
    """Memory of each thread, used again and again."""

    def array(self, name: str, dtype: np.dtype[Any], *shape: int) -> NDArray[Any]:
        """An array with the values that were left in it."""
        size, key = prod(shape), f"{name} {dtype}"
        kept = vars(self).get(key)
        if kept is None or kept.size < size:
            kept = vars(self)[key] = np.empty(size, dtype)
        return kept[:size].reshape(shape)
