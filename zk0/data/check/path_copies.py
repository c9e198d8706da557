"""Episodes of one dataset that take nearly the same path: replays, and copies with noise or with a part cut off.

Between datasets, where states are not at hand, `zk0.data.path_sketches` finds them.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from zk0.data.check.motion_measures import Floats, Motion, over_range
from zk0.data.frame_progress import FrameProgress, no_progress
from zk0.data.frame_table import EpisodeFrames

PATH_POINTS = 64
"""Points at which a path is compared with another one."""
DENSITY = 8
"""Points of the other path between two of these points; every so many points of a path are tried first."""
MIN_WAY_SHARE = 0.4
"""Way of a path, as a share of the other's, from which it is a copy of the other with a part cut off."""


def near_copies(motion: Motion, most: float, progress: FrameProgress = no_progress) -> dict[int, int]:
    """Return each episode that takes the path of an earlier one, at whatever speed -> that earlier one.

    Of two paths, one may be a part of the other. Episodes with equal numbers are left out.

    Args:
        motion: the dataset's.
        most: largest distance of two paths in any joint, as a share of its range.
        progress: called after each episode that is compared with all later ones.
    """
    done, total = 0, sum(len(f.state) for f in motion.episodes.values())
    episodes = list(motion.episodes)
    paths = np.stack([_path(f.state, motion.state_range) for f in motion.episodes.values()]).astype(np.float32)
    copies: dict[int, int] = {}
    for place, original in enumerate(episodes):
        later = [j for j in range(place + 1, len(episodes)) if episodes[j] not in copies]
        for j in _candidates(paths, place, later, most):
            is_near = path_distance(paths[place], paths[j]) <= most
            if is_near and not _are_equal(motion.episodes[original], motion.episodes[episodes[j]]):
                copies[episodes[j]] = original
        done += len(motion.episodes[original].state)
        progress("comparing episodes", done, total)
    return dict(sorted(copies.items()))


def path_distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return how far the path that lies nearer to the other one departs from it; infinite if its way is too short.

    Args:
        one: (PATH_POINTS, dims) points in shares of the joints' ranges.
        other: the same of another episode.
    """
    ways = _ways(np.stack([one, other]))
    both = (one, other, ways[0], ways[1]), (other, one, ways[1], ways[0])
    return min(_departure(a, _denser(b)) if way_a >= MIN_WAY_SHARE * way_b else np.inf for a, b, way_a, way_b in both)


def _candidates(paths: NDArray[np.float32], place: int, others: Sequence[int], most: float) -> Iterator[int]:
    """Yield those of the other paths that a few points do not show to be farther away than `most`, by their places."""
    low, high = paths.min(axis=1), paths.max(axis=1)
    inside = ((low[place] >= low - most) & (high[place] <= high + most)).all(axis=1)
    outside = ((low >= low[place] - most) & (high <= high[place] + most)).all(axis=1)
    for j in others:
        if (inside[j] and _may_be_part(paths[place], paths[j], most)) or (
            outside[j] and _may_be_part(paths[j], paths[place], most)
        ):
            yield j


def _may_be_part(part: NDArray[np.float32], whole: NDArray[np.float32], most: float) -> bool:
    half_step = float(np.abs(np.diff(whole, axis=0)).max(initial=0.0)) / 2
    return _departure(part[::DENSITY], whole) <= most + half_step


def _departure(part: NDArray[np.float32], whole: NDArray[np.float32]) -> float:
    """Return the largest distance, in any joint, of a point of `part` (points, dims) from the nearest of `whole`."""
    distances = np.zeros((len(part), len(whole)), dtype=np.float32)
    for a, b in zip(part.T, whole.T, strict=True):
        np.maximum(distances, np.abs(a[:, None] - b), out=distances)
    return float(distances.min(axis=1).max())


def _ways(paths: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (paths,) the lengths of paths (paths, points, dims)."""
    return np.asarray(np.abs(np.diff(paths, axis=1)).max(axis=2).sum(axis=1))


def _denser(path: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a path with DENSITY times as many points."""
    places = np.linspace(0, len(path) - 1, DENSITY * len(path))
    dense = [np.interp(places, np.arange(len(path)), path[:, d]) for d in range(path.shape[1])]
    return np.stack(dense, axis=1).astype(np.float32)


def _path(values: Floats, spread: Floats) -> Floats:
    """Return (PATH_POINTS, dims) points at equal distances along the way of the joints, in shares of their ranges."""
    shares = over_range(values, spread)
    way = np.append(0.0, np.cumsum(np.abs(np.diff(shares, axis=0)).max(axis=1)))
    points = np.linspace(0, way[-1], PATH_POINTS)
    return np.stack([np.interp(points, way, shares[:, d]) for d in range(shares.shape[1])], axis=1)


def _are_equal(one: EpisodeFrames, other: EpisodeFrames) -> bool:
    return np.array_equal(one.state, other.state) and np.array_equal(one.action, other.action)
