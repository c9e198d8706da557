"""Moments of state and action: measured at each client, pooled exactly by the server."""

from collections.abc import Mapping, Sequence
from math import fsum, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.errors import DatasetError
from zk0.records import Moments, Statistics
from zk0.robot.frames import read_episodes


def moments_of(values: NDArray[Any]) -> Moments:
    """Moments of rows (frames, dims): mean first, then deviations from it, both in float64.

    Raises:
        DatasetError: there are no rows, or a value is not finite.
    """
    rows = np.asarray(values, dtype=np.float64)
    if not len(rows):
        raise DatasetError("found no frame to measure, expected at least one")
    if not np.isfinite(rows).all():
        raise DatasetError(f"found {int((~np.isfinite(rows)).sum())} value(s) that are not finite; check the data set")
    mean = rows.mean(axis=0)
    return Moments(
        count=len(rows),
        mean=tuple(mean.tolist()),
        std=tuple(np.sqrt(((rows - mean) ** 2).mean(axis=0)).tolist()),
        min=tuple(rows.min(axis=0).tolist()),
        max=tuple(rows.max(axis=0).tolist()),
    )


def measure(root: Path, episodes: Sequence[int], rename: Mapping[str, str] | None = None) -> Statistics:
    """Moments over exactly the frames of these episodes, in the data set's own units.

    Raises:
        DatasetError: an episode is missing or broken, or a value is not finite.
    """
    found = read_episodes(root, episodes, rename)
    if not found:
        raise DatasetError(f"{root}: no episode was asked for, expected at least one")
    try:
        return Statistics(
            state=moments_of(np.concatenate([found[e].state for e in sorted(found)])),
            action=moments_of(np.concatenate([found[e].action for e in sorted(found)])),
        )
    except (DatasetError, ValueError) as e:
        raise DatasetError(f"{root}: {e}") from e


def pool(parts: Sequence[Statistics]) -> Statistics:
    """The statistics of all parts' frames together, from counts and moments alone.

    Equal to those of the concatenated data (Chan, Golub, LeVeque 1983, eq. 2.1). Sums are correctly rounded
    (`fsum`), so the order of the parts changes no bit.

    Raises:
        DatasetError: there are no parts, or they differ in their number of dimensions.
    """
    if not parts:
        raise DatasetError("no statistics to pool, expected at least one client's")
    return Statistics(
        state=_pool([p.state for p in parts], "state"),
        action=_pool([p.action for p in parts], "action"),
    )


def _pool(parts: Sequence[Moments], what: str) -> Moments:
    widths = sorted({len(p.mean) for p in parts})
    if len(widths) > 1:
        raise DatasetError(f"{what}: found clients with {widths} dimensions, expected the same number everywhere")
    count = sum(p.count for p in parts)
    dims = range(widths[0])
    mean = [fsum(p.count * p.mean[d] for p in parts) / count for d in dims]
    variance = [fsum(p.count * (p.std[d] ** 2 + (p.mean[d] - mean[d]) ** 2) for p in parts) / count for d in dims]
    return Moments(
        count=count,
        mean=tuple(mean),
        std=tuple(sqrt(v) for v in variance),
        min=tuple(min(p.min[d] for p in parts) for d in dims),
        max=tuple(max(p.max[d] for p in parts) for d in dims),
    )
