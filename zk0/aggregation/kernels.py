"""The loops over every value of every update, compiled by Numba; each passes once through a core's caches.

They release Python's lock, and return the same bits on every thread.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zk0.aggregation.arrays import Float64Array

TILE = 2048
"""Values of an update at a time: 16 KiB of float64 sums fit in the L1 cache."""


@njit(nogil=True, cache=True, error_model="numpy")
def weighted_mean_kernel(
    values: NDArray[Any], weights: Float64Array, used: NDArray[np.intp], out: Float64Array
) -> None:
    """Write the weighted mean of the rows `used` of `values` (updates, n) to `out` (n,), summed in that order.

    The kernel rounds products and sums one by one (no fused multiply-add), so every machine computes the same bits.
    """
    total = 0.0
    for i in used:
        total += weights[i]
    for start in range(0, out.size, TILE):
        tile = out[start : start + TILE]
        first = values[used[0], start : start + TILE]
        for j in range(tile.size):
            tile[j] = weights[used[0]] * first[j]  # not 0.0 + that: the sum would lose the sign of -0.0
        at = 1
        while at + 4 <= used.size:  # four updates a pass: the sums are loaded and stored a quarter as often
            p, q, r, s = weights[used[at]], weights[used[at + 1]], weights[used[at + 2]], weights[used[at + 3]]
            a = values[used[at], start : start + TILE]
            b = values[used[at + 1], start : start + TILE]
            c = values[used[at + 2], start : start + TILE]
            d = values[used[at + 3], start : start + TILE]
            for j in range(tile.size):
                tile[j] = (((tile[j] + p * a[j]) + q * b[j]) + r * c[j]) + s * d[j]
            at += 4
        while at < used.size:
            p, a = weights[used[at]], values[used[at], start : start + TILE]
            for j in range(tile.size):
                tile[j] += p * a[j]
            at += 1
        for j in range(tile.size):
            tile[j] /= total


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
def delta_norm_kernel(values: NDArray[Any], old: NDArray[Any], largest: float) -> tuple[int, float]:
    """Return where |values| (n,) first exceeds `largest` or is NaN, and ||values - old||^2.

    The index is -1 where no value does; else the norm covers the tiles before it. Sums run in the dtype of the weights
    over a tile, and in float64 over tiles.
    """
    total, limit = 0.0, old.dtype.type(largest)
    for start in range(0, old.size, TILE):
        row, before = values[start : start + TILE], old[start : start + TILE]
        square, bad = old.dtype.type(0), 0
        for j in range(before.size):
            bad += not abs(row[j]) <= limit
            delta = row[j] - before[j]
            square += delta * delta
        if bad:
            for j in range(before.size):
                if not abs(row[j]) <= limit:
                    return start + j, total
        total += square
    return -1, total


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
def delta_products_kernel(
    values: NDArray[Any], old: NDArray[Any], new: NDArray[Any], squares: Float64Array, products: Float64Array
) -> float:
    """Return ||new - old||^2; add ||values_i - old||^2 and <values_i - old, new - old> to `squares` and `products`.

    Sums run in the dtype of the weights over a tile, and in float64 over tiles.
    """
    total = 0.0
    change = np.empty(TILE, old.dtype)
    zero = old.dtype.type(0)
    for start in range(0, old.size, TILE):
        before, after = old[start : start + TILE], new[start : start + TILE]
        change_square = zero
        for j in range(before.size):
            change[j] = after[j] - before[j]
            change_square += change[j] * change[j]
        total += change_square
        for i in range(values.shape[0]):
            row = values[i, start : start + TILE]
            square, product = zero, zero
            for j in range(before.size):
                delta = row[j] - before[j]
                square += delta * delta
                product += delta * change[j]
            squares[i] += square
            products[i] += product
    return total
