"""Measures of the motion in states and actions, relative to each joint's range, so that they hold for every unit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from zk0.data.frame_table import EpisodeFrames

Floats = NDArray[np.float64]

MIN_FRAMES = 10
"""Episodes with fewer frames have too little motion to be judged."""
STILL_SHARE = 0.02
"""Share of a joint's range within which it counts as standing still."""
MIN_GLITCH_SHARE, GLITCH_STEPS = 0.15, 6.0
"""A glitch exceeds this share of the joint's range, and its usual fast step (90 % quantile) so many times."""
MAX_DELTA_SCALE = 0.5
"""Range of actions over range of states under which actions may be differences."""


@dataclass(frozen=True)
class Motion:
    """States and actions of all episodes with finite values and at least `MIN_FRAMES` frames."""

    episodes: Mapping[int, EpisodeFrames]
    """Episode -> its rows, float64."""
    state_range: Floats
    """(dims,) from the 1 % to the 99 % quantile of the states; 0: the joint never moves."""
    action_range: Floats
    """(dims,) the same for the actions."""
    state_step: Floats
    """(dims,) 90 % quantile of the absolute change of a state from one frame to the next."""
    action_step: Floats
    """(dims,) the same for the actions."""

    @cached_property
    def delta_episodes(self) -> tuple[int, ...]:
        """All episodes if the actions are differences, else those single ones whose actions are."""
        if _are_deltas(self, list(self.episodes)):
            return tuple(self.episodes)
        return tuple(e for e in self.episodes if _are_deltas(self, [e]))

    @property
    def moving(self) -> NDArray[np.bool_]:
        """(dims,) whether state and action of a joint move; only if both have the same dimensions."""
        return (self.state_range > 0) & (self.action_range > 0)

    @property
    def same_space(self) -> bool:
        """Whether states and actions have the same dimensions."""
        return len(self.state_range) == len(self.action_range)


def measure_motion(episodes: Mapping[int, EpisodeFrames]) -> Motion | None:
    """Return the motion of a dataset; None if no episode is long enough and finite."""
    usable = {
        e: EpisodeFrames(np.asarray(f.state, dtype=np.float64), np.asarray(f.action, dtype=np.float64))
        for e, f in episodes.items()
        if len(f.state) >= MIN_FRAMES and np.isfinite(f.state).all() and np.isfinite(f.action).all()
    }
    if not usable:
        return None
    return Motion(
        episodes=usable,
        state_range=_range(np.concatenate([f.state for f in usable.values()])),
        action_range=_range(np.concatenate([f.action for f in usable.values()])),
        state_step=_fast_step([f.state for f in usable.values()]),
        action_step=_fast_step([f.action for f in usable.values()]),
    )


def find_glitches(values: Floats, spread: Floats, fast_step: Floats) -> list[tuple[int, int]]:
    """Return (frame, joint) of every value that jumps away from its neighbors and back within one frame.

    Args:
        values: (frames, dims) of one episode.
        spread: (dims,) range of each joint.
        fast_step: (dims,) usual fast step of each joint.

    >>> smooth = np.linspace(0, 1, 20)[:, None]
    >>> find_glitches(np.where(np.arange(20)[:, None] == 7, 9, smooth), np.ones(1), np.full(1, 0.05))
    [(7, 0)]
    """
    away, back = np.diff(values, axis=0)[:-1], np.diff(values, axis=0)[1:]
    limit = np.maximum(MIN_GLITCH_SHARE * spread, GLITCH_STEPS * fast_step)
    jumps = (np.minimum(np.abs(away), np.abs(back)) > limit) & (np.abs(away + back) < 0.3 * np.abs(away)) & (spread > 0)
    return [(int(t) + 1, int(d)) for t, d in np.argwhere(jumps)]


def find_zero_rows(values: Floats, spread: Floats) -> list[int]:
    """Return the frames whose values are all zero although the joints cannot have moved there so fast.

    >>> find_zero_rows(np.array([[30.0, 5], [31, 5], [0, 0], [33, 5]]), np.full(2, 40.0))
    [2]
    """
    zero = (values == 0).all(axis=1)
    jumps = (np.abs(np.diff(values, axis=0)) > MIN_GLITCH_SHARE * spread).any(axis=1)
    beside = np.append(jumps, False) | np.append(False, jumps)
    edges = zero & beside
    return [] if not edges.any() else np.flatnonzero(zero).tolist()


def moved_share(values: Floats, spread: Floats) -> Floats:
    """Return the range of each joint in one episode as a share of its range over the dataset; 0 where that is 0."""
    moved: Floats = over_range(values.max(axis=0) - values.min(axis=0), spread)
    return moved


def idle_frames(values: Floats, spread: Floats) -> tuple[int, int]:
    """Return how many frames at the beginning and at the end of an episode show the same posture.

    >>> idle_frames(np.array([[0.0], [0], [0], [5], [9], [9]]), np.full(1, 9.0))
    (3, 2)
    """
    left = np.flatnonzero(over_range(np.abs(values - values[0]), spread).max(axis=1) > STILL_SHARE)
    arrived = np.flatnonzero(over_range(np.abs(values - values[-1]), spread).max(axis=1) > STILL_SHARE)
    if not len(left):
        return len(values), 0
    return int(left[0]), min(len(values) - 1 - int(arrived[-1]), len(values) - 1 - int(left[0]))


def follow_correlations(state: Floats, action: Floats, spread: Floats, most: int) -> Floats:
    """Return (2 * most + 1,) correlations of the change of the action with the change of the state k frames later.

    Position `most + k` belongs to k, from -most to most. The robot follows its commands, so k is above 0 where it is
    highest.
    """
    given, followed = over_range(np.diff(action, axis=0), spread), over_range(np.diff(state, axis=0), spread)
    n = len(given)
    pairs = [(given[: n - k], followed[k:]) if k >= 0 else (given[-k:], followed[:k]) for k in range(-most, most + 1)]
    return np.asarray([_correlation(a, b) for a, b in pairs])


def column_correlations(a: Floats, b: Floats) -> Floats:
    """Return (dims,) correlations of the columns of two arrays (frames, dims); NaN where one is constant."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norms = np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))
    return np.divide((a * b).sum(axis=0), norms, out=np.full(a.shape[1], np.nan), where=norms > 0)


def delta_scale(motion: Motion, episodes: Sequence[int]) -> float:
    """Return the range of the actions over that of the states in these episodes: the median over the moving joints."""
    state, action = (np.concatenate([getattr(motion.episodes[e], k) for e in episodes]) for k in ("state", "action"))
    ranges = [np.diff(np.quantile(v, [0.01, 0.99], axis=0), axis=0)[0] for v in (state, action)]
    moving = (ranges[0] > 0) & (ranges[1] > 0)
    return float(np.median(ranges[1][moving] / ranges[0][moving])) if moving.any() else 1.0


def _are_deltas(motion: Motion, episodes: Sequence[int]) -> bool:
    """Return whether actions are small and follow the change of the states instead of the states."""
    if not motion.same_space or delta_scale(motion, episodes) > MAX_DELTA_SCALE:
        return False
    parts, moving = [motion.episodes[e] for e in episodes], motion.moving
    like_state = np.concatenate([column_correlations(p.action, p.state)[moving] for p in parts])
    like_change = np.concatenate([column_correlations(p.action[:-1], np.diff(p.state, axis=0))[moving] for p in parts])
    both = np.isfinite(like_state) & np.isfinite(like_change)
    return bool(both.any() and np.median(like_state[both]) < 0.5 < np.median(like_change[both]))


def _fast_step(parts: Sequence[Floats]) -> Floats:
    steps: Floats = np.quantile(np.concatenate([np.abs(np.diff(p, axis=0)) for p in parts]), 0.9, axis=0)
    return steps


def _range(values: Floats) -> Floats:
    low, high = np.quantile(values, [0.01, 0.99], axis=0)
    spread: Floats = high - low
    return spread


def over_range(values: Floats, spread: Floats) -> Floats:
    """Return values (frames, dims) as shares of each joint's range; 0 where that is 0."""
    return np.divide(values, spread, out=np.zeros_like(values), where=spread > 0)


def _correlation(a: Floats, b: Floats) -> float:
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm > 0 else 0.0
