"""A picture as the mean colors of a few cells."""

import numpy as np
from numpy.typing import NDArray

from zk0.records import CELLS


def picture_cells(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the mean colors (CELLS, CELLS, 3) of a picture's cells.

    >>> half = np.zeros((8, 12, 3), np.uint8)
    >>> half[:, 6:] = 100
    >>> picture_cells(half)[0, :, 0].tolist()
    [0.0, 0.0, 100.0, 100.0]

    Args:
        picture: (height, width, 3), at least CELLS pixels in each direction.
    """
    rows = np.array_split(picture, CELLS, axis=0)
    return np.array([[cell.mean(axis=(0, 1)) for cell in np.array_split(row, CELLS, axis=1)] for row in rows])
