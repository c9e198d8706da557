"""What a round's updates are like before they are combined: how long each step is, and how far they lie apart."""

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.aggregation.blocks import Block, blocks_of, in_order
from zk0.aggregation.opened import Opened
from zk0.aggregation.reader import Reader, inner_products

Values = NDArray[np.float64]


def step_norms(opened: Opened, threads: int = 1) -> tuple[float, ...]:
    """||update - old||, L2 over all tensors, of each update; good to seven digits."""
    return tuple(map(sqrt, _summed(opened, lambda steps: inner_products(steps, steps), threads)))


def squared_distances(opened: Opened, threads: int = 1) -> Values:
    """||update_i - update_j||^2 (updates, updates), from inner products of their steps."""

    def products(steps: NDArray[Any]) -> Values:
        rows = [inner_products(steps[i:], steps[i]) for i in range(len(steps))]
        return np.concatenate(rows)

    flat, count = _summed(opened, products, threads), len(opened.sources)
    gram = np.zeros((count, count))
    gram[np.triu_indices(count)] = flat
    gram += np.triu(gram, 1).T
    square = np.diag(gram)
    return np.maximum(square[:, None] + square[None, :] - 2 * gram, 0.0)


def _summed(opened: Opened, measure: Callable[[NDArray[Any]], Values], threads: int) -> Values:
    """The sum over all blocks, in their order, of what `measure` says of a part's steps (updates, n)."""
    reader = Reader(opened.anchor, opened.sources)

    def of_block(block: Block) -> Values:
        with np.errstate(invalid="ignore", over="ignore"):
            parts = [measure(reader.steps(part)) for part in reader.parts(block)]
        return np.asarray(sum(parts))

    specs = opened.anchor.specs
    found = list(in_order(of_block, blocks_of(specs, specs, reader.length), threads))
    return np.asarray(sum(found)) if found else np.asarray(measure(np.zeros((len(opened.sources), 1))))
