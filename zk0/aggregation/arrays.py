"""The array type of sums, and the conversion of half precision, which all modules of the aggregation share."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]


def float16_as_float32(values: NDArray[Any]) -> NDArray[Any]:
    """Return half precision as float32, which processors compute with; return wider dtypes unchanged, uncopied."""
    return values.astype(np.float32) if values.dtype == np.float16 else values
