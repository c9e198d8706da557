"""The coordinate-wise median of the clients' weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.aggregation.arrays import Float64Array
from zk0.aggregation.strategy import Strategy, equal_weights


class Median(Strategy):
    """The median of each weight (arXiv 1803.01498, definition 1); every client counts the same."""

    name = "median"

    def update_weights(self, examples: Float64Array, squared_distances: Callable[[], Float64Array]) -> Float64Array:
        """Give every update the same weight."""
        return equal_weights(examples)

    def combine(self, values: NDArray[Any], weights: Float64Array) -> Float64Array:
        """Return the middle value of each column, or the mean of the two middle ones.

        >>> from zk0.settings.aggregation_settings import AggregationSettings
        >>> Median(AggregationSettings()).combine(np.array([[1.0], [900.0], [3.0], [2.0]]), np.ones(4))
        array([2.5])
        """
        return np.asarray(np.median(values.astype(np.float64), axis=0, overwrite_input=True))
