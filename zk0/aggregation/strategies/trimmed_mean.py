"""The coordinate-wise trimmed mean of the clients' weights."""

from collections.abc import Callable
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.aggregation.arrays import Float64Array
from zk0.aggregation.strategy import Strategy, equal_weights


class TrimmedMean(Strategy):
    """The mean of each weight without its smallest and largest values (arXiv 1803.01498, definition 2).

    Every client counts the same; `trim_fraction` is the share of the clients that is left out at either end, rounded
    down.
    """

    name = "trimmed_mean"

    def min_updates(self) -> int:
        """Return the number of updates from which on at least one is left out at either end."""
        return ceil(1 / self.settings.trim_fraction)

    def update_weights(self, examples: Float64Array, squared_distances: Callable[[], Float64Array]) -> Float64Array:
        """Give every update the same weight."""
        return equal_weights(examples)

    def combine(self, values: NDArray[Any], weights: Float64Array) -> Float64Array:
        """Return the mean of the inner values of each column.

        >>> from zk0.settings.aggregation_settings import AggregationSettings
        >>> strategy = TrimmedMean(AggregationSettings(trim_fraction=0.25))
        >>> strategy.combine(np.array([[1.0], [900.0], [3.0], [2.0]]), np.ones(4))
        array([2.5])
        """
        clients = len(values)
        cut = int(self.settings.trim_fraction * clients)
        inner = np.partition(values, (cut, clients - cut - 1), axis=0)[cut : clients - cut]
        return np.asarray(inner.mean(axis=0, dtype=np.float64))
