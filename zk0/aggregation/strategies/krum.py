"""Krum: the update that is closest to the others."""

from collections.abc import Callable

import numpy as np

from zk0.aggregation.arrays import Float64Array
from zk0.aggregation.strategy import Strategy


class Krum(Strategy):
    """The one update with the smallest squared distances to the others (arXiv 1703.02757, section 4).

    `malicious` is the number of updates that may hold arbitrary values.
    """

    name = "krum"

    def min_updates(self) -> int:
        """Return 2 malicious + 3, the paper's condition."""
        return 2 * self.settings.malicious + 3

    def update_weights(self, examples: Float64Array, squared_distances: Callable[[], Float64Array]) -> Float64Array:
        """Return the examples of the updates with the lowest scores, and 0 for the others."""
        scores = krum_scores(squared_distances(), self.settings.malicious)
        selected = lowest_scores(scores, self.selected_updates(len(examples)))
        return np.where(np.isin(np.arange(len(examples)), selected), examples, 0.0)

    def selected_updates(self, updates: int) -> int:
        """Return how many of the updates are averaged."""
        return 1


def krum_scores(squared_distances: Float64Array, malicious: int) -> Float64Array:
    """Return for each update the sum of its squared distances to the n - malicious - 2 closest others (section 4).

    >>> krum_scores(np.array([[0.0, 1, 9], [1, 0, 4], [9, 4, 0]]), malicious=0)
    array([1., 1., 4.])
    """
    count = len(squared_distances)
    others = np.sort(squared_distances + np.diag(np.full(count, np.inf)), axis=1)
    return np.asarray(others[:, : max(1, count - malicious - 2)].sum(axis=1))


def lowest_scores(scores: Float64Array, count: int) -> tuple[int, ...]:
    """Return the ascending indices of the `count` lowest scores; of equal scores the first ones.

    >>> lowest_scores(np.array([3.0, 1.0, 1.0, 2.0]), 2)
    (1, 2)
    """
    return tuple(sorted(np.argsort(scores, kind="stable")[:count].tolist()))
