"""Krum: of many updates, those that lie closest to the others (arXiv 1703.02757)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def krum_scores(squared_distances: NDArray[np.float64], malicious: int) -> NDArray[np.float64]:
    """For each update the sum of its squared distances to the n - malicious - 2 closest others (section 4).

    >>> krum_scores(np.array([[0.0, 1, 9], [1, 0, 4], [9, 4, 0]]), malicious=0)
    array([1., 1., 4.])
    """
    count = len(squared_distances)
    others = np.sort(squared_distances + np.diag(np.full(count, np.inf)), axis=1)
    return np.asarray(others[:, : max(1, count - malicious - 2)].sum(axis=1))


def best(scores: Sequence[float] | NDArray[np.float64], count: int) -> tuple[int, ...]:
    """Indices of so many lowest scores; of equal ones, those that come first.

    >>> best([3.0, 1.0, 1.0, 2.0], 2)
    (1, 2)
    """
    return tuple(sorted(np.argsort(np.asarray(scores), kind="stable")[:count].tolist()))
