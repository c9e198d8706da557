"""The largest weight of a client in the mean: the server cannot check how many frames a client counts."""

from collections.abc import Sequence
from math import floor
from statistics import median_low


def capped_frames(frames: Sequence[int], factor: float) -> list[int]:
    """Return each client's count of frames, at most `factor` times the lower median of all.

    The lower median is that of an honest client as long as fewer than half of the clients claim too much; of two
    clients, it is the smaller count.

    Args:
        frames: of each client.
        factor: `aggregation.max_share_factor`; 0: no limit.

    >>> capped_frames([100, 90, 110, 10**9], factor=3.0)
    [100, 90, 110, 300]
    >>> capped_frames([400, 10**9], factor=3.0)
    [400, 1200]
    """
    if not factor or not frames:
        return list(frames)
    limit = max(1, floor(factor * median_low(frames)))
    return [min(count, limit) for count in frames]
