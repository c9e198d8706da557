"""Many clients' values of the same weights as one: the rules that strategies are made of, coordinate by coordinate."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.aggregation import kernels

Values = NDArray[np.float64]
Combine = Callable[[NDArray[Any], Values], Values]
"""From values (clients, n) of any floating dtype and the clients' weights in a mean, to values (n,)."""


def weighted_mean(values: NDArray[Any], weights: Values) -> Values:
    """The mean of those whose weight is not 0, summed in the order of the clients (FedAvg, arXiv 1602.05629, alg. 1).

    >>> weighted_mean(np.array([[1.0, 4.0], [4.0, 4.0]]), np.array([2.0, 1.0]))
    array([2., 4.])
    """
    mean = np.empty(values.shape[1])
    kernels.mean(widened(values), weights, np.flatnonzero(weights), mean)
    return mean


def widened(values: NDArray[Any]) -> NDArray[Any]:
    """Half precision as float32, which processors compute with; anything wider as it is."""
    return values.astype(np.float32) if values.dtype == np.float16 else values


def median(values: NDArray[Any], weights: Values) -> Values:
    """The middle value, or the mean of the two (arXiv 1803.01498, definition 1); every client counts the same.

    >>> median(np.array([[1.0], [900.0], [3.0], [2.0]]), np.ones(4))
    array([2.5])
    """
    return np.asarray(np.median(values.astype(np.float64), axis=0, overwrite_input=True))


def trimmed_mean(fraction: float) -> Combine:
    """The mean without the smallest and the largest values (arXiv 1803.01498, definition 2).

    Every client counts the same; `fraction` is the share of the clients that goes at either end, rounded down.

    >>> trimmed_mean(0.25)(np.array([[1.0], [900.0], [3.0], [2.0]]), np.ones(4))
    array([2.5])
    """

    def combine(values: NDArray[Any], weights: Values) -> Values:
        clients = len(values)
        cut = int(fraction * clients)
        inner = np.partition(values, (cut, clients - cut - 1), axis=0)[cut : clients - cut]
        return np.asarray(inner.mean(axis=0, dtype=np.float64))

    return combine
