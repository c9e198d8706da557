"""Statistics of state and action for normalization.

Each client measures the moments of its training episodes; the server pools them. The result is exactly the statistics
of all training frames together, and no frame leaves a client.
"""

from collections.abc import Mapping, Sequence
from math import fsum, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.data.frame_table import read_episodes
from zk0.errors import DatasetError
from zk0.records import JointUnits, Moments, Statistics

SMALLEST_STD: Mapping[JointUnits, float] = {"degrees": 1.0, "normalized": 1.0, "radians": 0.0175}
"""Smallest standard deviation that a joint is divided by. A joint that hardly moved while training would otherwise turn
an offset of a tenth of a degree into a number of any size."""


def compute_moments(values: NDArray[Any]) -> Moments:
    """Return the moments of rows (frames, dims), in float64; two passes: the mean, then the deviations from it.

    Raises:
        DatasetError: there are no rows, or a value is not finite.
    """
    rows = np.asarray(values, dtype=np.float64)
    if not len(rows):
        raise DatasetError("found no frame to measure, expected at least one")
    if not np.isfinite(rows).all():
        raise DatasetError(f"found {int((~np.isfinite(rows)).sum())} value(s) that are not finite; check the dataset")
    mean = rows.mean(axis=0)
    return Moments(
        count=len(rows),
        mean=tuple(mean.tolist()),
        std=tuple(np.sqrt(((rows - mean) ** 2).mean(axis=0)).tolist()),
        min=tuple(rows.min(axis=0).tolist()),
        max=tuple(rows.max(axis=0).tolist()),
    )


def measure_statistics(root: Path, episodes: Sequence[int], rename: Mapping[str, str] | None = None) -> Statistics:
    """Return the statistics over the frames of these episodes, in the dataset's own units.

    Args:
        root: the dataset's folder.
        episodes: episode indices.
        rename: feature key in the dataset -> key in the contract.

    Raises:
        DatasetError: an episode is missing or broken, or a value is not finite.
    """
    found = read_episodes(root, episodes, rename)
    if not found:
        raise DatasetError(f"{root}: no episode given, expected at least one")
    try:
        return Statistics(
            state=compute_moments(np.concatenate([found[e].state for e in sorted(found)])),
            action=compute_moments(np.concatenate([found[e].action for e in sorted(found)])),
        )
    except (DatasetError, ValueError) as e:
        raise DatasetError(f"{root}: {e}") from e


def pool_moments(parts: Sequence[Statistics]) -> Statistics:
    """Return the statistics of all clients' frames together, computed from their counts and moments.

    They equal the statistics of the concatenated data (Chan, Golub, LeVeque 1983, eq. 2.1). Sums are correctly rounded
    (`fsum`), so the order of the clients changes no bit.

    Raises:
        DatasetError: `parts` is empty, or they differ in their number of dimensions.
    """
    if not parts:
        raise DatasetError("no statistics to pool, expected at least one client's")
    return Statistics(
        state=_pool_feature([p.state for p in parts], "state"),
        action=_pool_feature([p.action for p in parts], "action"),
    )


def with_smallest_std(statistics: Statistics, units: JointUnits) -> Statistics:
    """Return the statistics with no standard deviation below `SMALLEST_STD`."""
    state, action = (
        moments.model_copy(update={"std": tuple(max(std, SMALLEST_STD[units]) for std in moments.std)})
        for moments in (statistics.state, statistics.action)
    )
    return Statistics(state=state, action=action)


def joints_with_smallest_std(statistics: Statistics, units: JointUnits) -> tuple[int, ...]:
    """Return the joints whose standard deviation `with_smallest_std` has raised, in state or action."""
    pairs = zip(statistics.state.std, statistics.action.std, strict=True)
    return tuple(joint for joint, pair in enumerate(pairs) if SMALLEST_STD[units] in pair)


def _pool_feature(parts: Sequence[Moments], what: str) -> Moments:
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
