"""Norms of a round's deltas, and distances between its updates, which some settings need before the aggregation."""

from collections.abc import Callable
from functools import partial
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.aggregation import kernels
from zk0.aggregation.arrays import Float64Array, float16_as_float32
from zk0.aggregation.block_reader import BlockReader, BlockValues
from zk0.aggregation.blocks import Block, map_in_order, split_into_blocks
from zk0.aggregation.open_round import OpenRound

_DOT_VALUES = 8192
"""BLAS splits longer inner products between its own threads, whose number would decide the last bits."""


def delta_norms(open_round: OpenRound, threads: int = 1) -> tuple[float, ...]:
    """Return ||update - global||, L2 over all tensors, of each update; accurate to seven digits."""

    def squares(reader: BlockReader, block: Block) -> Float64Array:
        part = reader.read(block)
        old = float16_as_float32(part.old)
        return np.array([kernels.delta_norm_kernel(row, old, np.inf)[1] for row in float16_as_float32(part.values)])

    return tuple(map(sqrt, _sum_over_blocks(open_round, squares, len(open_round.sources), threads)))


def squared_distances(open_round: OpenRound, threads: int = 1) -> Float64Array:
    """Return ||update_i - update_j||^2 (updates, updates), computed from inner products of their deltas."""

    def products(reader: BlockReader, block: Block) -> Float64Array:
        with np.errstate(invalid="ignore", over="ignore"):
            deltas = _deltas(reader, reader.read(block))
            return np.concatenate([_inner_products(deltas[i:], deltas[i]) for i in range(len(deltas))])

    count = len(open_round.sources)
    flat = _sum_over_blocks(open_round, products, count * (count + 1) // 2, threads)
    gram = np.zeros((count, count))
    gram[np.triu_indices(count)] = flat
    gram += np.triu(gram, 1).T
    square = np.diag(gram)
    return np.maximum(square[:, None] + square[None, :] - 2 * gram, 0.0)


def _sum_over_blocks(
    open_round: OpenRound, measure: Callable[[BlockReader, Block], Float64Array], length: int, threads: int
) -> Float64Array:
    """Return the sum, in the order of the blocks, of the `length` numbers that `measure` returns for each."""
    reader, specs = BlockReader(open_round.global_weights, open_round.sources), open_round.global_weights.specs
    total = np.zeros(length)
    for numbers in map_in_order(partial(measure, reader), split_into_blocks(specs, specs, reader.length), threads):
        total += numbers
    return total


def _deltas(reader: BlockReader, part: BlockValues) -> NDArray[Any]:
    """Return each update's delta (updates, n): float32, unless the weights are wider."""
    dtype = np.promote_types(part.old.dtype, np.float32)
    return np.subtract(part.values, part.old, out=reader.scratch.array("deltas", dtype, *part.values.shape))


def _inner_products(a: NDArray[Any], b: NDArray[Any]) -> Float64Array:
    """Return inner products over the last axis: sums of 8192 values in the arrays' dtype, added up in float64."""
    slices = (slice(start, start + _DOT_VALUES) for start in range(0, a.shape[-1], _DOT_VALUES))
    return np.asarray(sum(np.vecdot(a[..., one], b[..., one]).astype(np.float64) for one in slices))
