"""The weighted mean of the updates' values, which most strategies combine updates by."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.aggregation.arrays import Float64Array, float16_as_float32


def weighted_mean_of_updates(values: NDArray[Any], weights: Float64Array) -> Float64Array:
    """Return the weighted mean (FedAvg, arXiv 1602.05629, algorithm 1), summed in the order of the updates.

    Args:
        values: (updates, n), any floating dtype.
        weights: (updates,); values of an update whose weight is 0 are not read.

    >>> weighted_mean_of_updates(np.array([[1.0, 4.0], [4.0, 4.0]]), np.array([2.0, 1.0]))
    array([2., 4.])
    """
    from zk0.aggregation import kernels  # Numba takes a second to import; a check of settings needs no arithmetic

    mean = np.empty(values.shape[1])
    kernels.weighted_mean_kernel(float16_as_float32(values), weights, np.flatnonzero(weights), mean)
    return mean
