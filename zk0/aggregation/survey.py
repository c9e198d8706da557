"""What a round's updates are like before they are combined: how long each step is, and how far they lie apart."""

from collections.abc import Callable
from functools import partial
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.aggregation import kernels
from zk0.aggregation.blocks import Block, blocks_of, in_order
from zk0.aggregation.combine import widened
from zk0.aggregation.opened import Opened
from zk0.aggregation.reader import Part, Reader

Values = NDArray[np.float64]
_DOT_VALUES = 8192
"""Longer inner products would be given to BLAS's own threads, whose number decides the last bits."""


def step_norms(opened: Opened, threads: int = 1) -> tuple[float, ...]:
    """||update - old||, L2 over all tensors, of each update; good to seven digits."""

    def squares(reader: Reader, block: Block) -> Values:
        part = reader.read(block)
        old = widened(part.old)
        return np.array([kernels.inspect(values, old, np.inf)[1] for values in widened(part.values)])

    return tuple(map(sqrt, _summed(opened, squares, len(opened.sources), threads)))


def squared_distances(opened: Opened, threads: int = 1) -> Values:
    """||update_i - update_j||^2 (updates, updates), from inner products of their steps."""

    def products(reader: Reader, block: Block) -> Values:
        with np.errstate(invalid="ignore", over="ignore"):
            steps = _steps(reader, reader.read(block))
            return np.concatenate([_inner_products(steps[i:], steps[i]) for i in range(len(steps))])

    count = len(opened.sources)
    flat = _summed(opened, products, count * (count + 1) // 2, threads)
    gram = np.zeros((count, count))
    gram[np.triu_indices(count)] = flat
    gram += np.triu(gram, 1).T
    square = np.diag(gram)
    return np.maximum(square[:, None] + square[None, :] - 2 * gram, 0.0)


def _summed(opened: Opened, measure: Callable[[Reader, Block], Values], length: int, threads: int) -> Values:
    """The sum over all blocks, in their order, of what `measure` says of each: so many numbers."""
    reader, specs, total = Reader(opened.anchor, opened.sources), opened.anchor.specs, np.zeros(length)
    for found in in_order(partial(measure, reader), blocks_of(specs, specs, reader.length), threads):
        total += found
    return total


def _steps(reader: Reader, part: Part) -> NDArray[Any]:
    """Each update's way from the old values (updates, n): float32, unless the weights are wider."""
    dtype = np.promote_types(part.old.dtype, np.float32)
    return np.subtract(part.values, part.old, out=reader.scratch.array("steps", dtype, *part.values.shape))


def _inner_products(a: NDArray[Any], b: NDArray[Any]) -> Values:
    """Of the last axis: summed in the arrays' dtype over 8192 values at a time, and in float64 over those sums."""
    pieces = (slice(start, start + _DOT_VALUES) for start in range(0, a.shape[-1], _DOT_VALUES))
    return np.asarray(sum(np.vecdot(a[..., piece], b[..., piece]).astype(np.float64) for piece in pieces))
