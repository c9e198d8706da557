"""Many clients' values of the same weights as one: the rules that strategies are made of, coordinate by coordinate."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Combine = Callable[[Values, Values], Values]
"""From values (clients, n), which it may overwrite, and the clients' weights in a mean, to values (n,)."""


def weighted_mean(values: Values, weights: Values) -> Values:
    """The mean, summed in the order of the clients (FedAvg, arXiv 1602.05629, algorithm 1).

    >>> weighted_mean(np.array([[1.0, 4.0], [4.0, 4.0]]), np.array([2.0, 1.0]))
    array([2., 4.])
    """
    mean = np.einsum("i,ij->j", weights, values)
    if np.count_nonzero(mean.view(np.int64)) < mean.size:  # sums begin with 0.0, and 0.0 + -0.0 loses the sign
        zero = mean == 0
        mean[zero] = np.where(np.signbit(values[:, zero]).all(axis=0), -0.0, 0.0)
    mean /= weights.sum()
    return mean


def median(values: Values, weights: Values) -> Values:
    """The middle value, or the mean of the two (arXiv 1803.01498, definition 1); every client counts the same.

    >>> median(np.array([[1.0], [900.0], [3.0], [2.0]]), np.ones(4))
    array([2.5])
    """
    return np.asarray(np.median(values, axis=0, overwrite_input=True), np.float64)


def trimmed_mean(fraction: float) -> Combine:
    """The mean without the smallest and the largest values (arXiv 1803.01498, definition 2).

    Every client counts the same; `fraction` is the share of the clients that goes at either end, rounded down.

    >>> trimmed_mean(0.25)(np.array([[1.0], [900.0], [3.0], [2.0]]), np.ones(4))
    array([2.5])
    """

    def combine(values: Values, weights: Values) -> Values:
        clients = len(values)
        cut = int(fraction * clients)
        values.partition((cut, clients - cut - 1), axis=0)
        return np.asarray(values[cut : clients - cut].mean(axis=0))

    return combine
