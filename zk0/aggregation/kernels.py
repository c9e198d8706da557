"""The loops that touch every value of every update, compiled by Numba: each passes once through a core's caches.

They run without Python's lock, on whatever thread calls them, and give the same bits on each.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Values = NDArray[np.float64]

TILE = 2048
"""Values of an update at a time: 16 KiB of float64 sums stay in the first cache."""


@njit(nogil=True, cache=True, error_model="numpy")
def mean(values: NDArray[Any], weights: Values, used: NDArray[np.intp], out: Values) -> None:
    """The weighted mean of some updates' values (updates, n) into `out` (n,), float64, in the order of `used`.

    Products and sums are rounded one by one, so every machine gets the same bits.
    """
    total = 0.0
    for i in used:
        total += weights[i]
    for start in range(0, out.size, TILE):
        tile = out[start : start + TILE]
        first = values[used[0], start : start + TILE]
        for j in range(tile.size):
            tile[j] = weights[used[0]] * first[j]  # not 0.0 + that: it would lose the sign of -0.0
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
def inspect(values: NDArray[Any], old: NDArray[Any], largest: float) -> tuple[int, float]:
    """Where `values` (n,) first exceeds `largest` or is NaN (-1: nowhere), and ||values - old||^2 up to there.

    Summed as `measure` does.
    """
    total, limit = 0.0, old.dtype.type(largest)
    for start in range(0, old.size, TILE):
        row, before = values[start : start + TILE], old[start : start + TILE]
        square, bad = old.dtype.type(0), 0
        for j in range(before.size):
            bad += not abs(row[j]) <= limit
            way = row[j] - before[j]
            square += way * way
        if bad:
            for j in range(before.size):
                if not abs(row[j]) <= limit:
                    return start + j, total
        total += square
    return -1, total


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
def measure(values: NDArray[Any], old: NDArray[Any], new: NDArray[Any], squares: Values, products: Values) -> float:
    """||new - old||^2; adds ||values_i - old||^2 and <values_i - old, new - old> to `squares` and `products`.

    Sums run in the dtype of the weights over a tile, and in float64 over tiles.
    """
    taken = 0.0
    step = np.empty(TILE, old.dtype)
    zero = old.dtype.type(0)
    for start in range(0, old.size, TILE):
        before, after = old[start : start + TILE], new[start : start + TILE]
        own = zero
        for j in range(before.size):
            step[j] = after[j] - before[j]
            own += step[j] * step[j]
        taken += own
        for i in range(values.shape[0]):
            row = values[i, start : start + TILE]
            square, product = zero, zero
            for j in range(before.size):
                way = row[j] - before[j]
                square += way * way
                product += way * step[j]
            squares[i] += square
            products[i] += product
    return taken
