"""The frame rate that the clock of the rows, the videos and their clips agree on."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from zk0.data.dataset_info import TOLERANCE_SECONDS

RATE_TOLERANCE = 0.01
"""Largest relative difference of two rates that count as equal."""


def clock_rate(episodes: Iterable[tuple[NDArray[np.int64], NDArray[np.float64]]]) -> float | None:
    """Return the frames per second of a regular clock: timestamp = frame_index / rate in all episodes; else None.

    Args:
        episodes: (frame_index, timestamp), each (frames,), of every episode.

    >>> clock_rate([(np.arange(5), np.arange(5) / 10)]), clock_rate([(np.arange(5), np.arange(5) ** 2 / 10)])
    (10.0, None)
    """
    parts = [(frame, seconds) for frame, seconds in episodes if len(frame) > 1]
    steps = [np.diff(seconds) / np.maximum(np.diff(frame), 1) for frame, seconds in parts]
    if not steps or not np.isfinite(step := float(np.median(np.concatenate(steps)))) or step <= 0:
        return None
    rate = next((r for r in (round(1 / step), round(1 / step, 2)) if abs(1 / step - r) < 1e-3 / step), 1 / step)
    drift = max(float(np.abs(seconds - frame / rate).max()) for frame, seconds in parts) if rate else float("inf")
    return float(rate) if drift <= TOLERANCE_SECONDS else None


def are_equal_rates(rates: Sequence[float], expected: float) -> bool:
    """Return whether all rates are within 1 % of the expected one."""
    return all(abs(r - expected) <= RATE_TOLERANCE * expected for r in rates)
