"""Smoothness of a movement: spectral arc length, of joint paths and of the motion in videos."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_PADDING = 4
"""The spectrum has 2^4 times the points of the next power of two, as in the paper."""
_MAX_HZ = 10.0
_MIN_AMPLITUDE = 0.05


def spectral_arc_length(speed: NDArray[Any], fps: float) -> float | None:
    """SPARC of a speed profile (T,) in any unit: 0 is perfectly smooth, more negative is less smooth.

    The negative arc length of the normalized amplitude spectrum up to 10 Hz (or half of `fps`), within the part whose
    amplitude reaches 5 % (Balasubramanian et al. 2015, doi 10.1186/s12984-015-0090-9, eqs. 8 and 9). It is independent
    of amplitude and duration. None if nothing moved or there are fewer than three speeds.

    >>> time = np.arange(-1, 1, 0.01)
    >>> f"{spectral_arc_length(np.exp(-5 * time**2), fps=100):.5f}"  # example from the code of the authors
    '-1.41403'
    """
    values = np.asarray(speed, dtype=np.float64)
    if len(values) < 3 or not values.any():
        return None
    points = 2 ** (int(np.ceil(np.log2(len(values)))) + _PADDING)
    amplitude = np.abs(np.fft.rfft(values, points))
    hertz = np.fft.rfftfreq(points, 1 / fps)
    amplitude, hertz = (part[hertz <= _MAX_HZ] for part in (amplitude / amplitude.max(), hertz))
    reached = np.flatnonzero(amplitude >= _MIN_AMPLITUDE)
    amplitude, hertz = (part[reached[0] : reached[-1] + 1] for part in (amplitude, hertz))
    if len(hertz) < 2:
        return None
    steps = np.diff(hertz) / (hertz[-1] - hertz[0])
    return -float(np.sqrt(steps**2 + np.diff(amplitude) ** 2).sum())


def path_smoothness(positions: NDArray[Any], fps: float) -> float | None:
    """SPARC of the speed along a path (T, joints).

    >>> path_smoothness(np.zeros((20, 6)), 10) is None
    True
    """
    return spectral_arc_length(np.linalg.norm(np.diff(positions, axis=0), axis=1) * fps, fps)
