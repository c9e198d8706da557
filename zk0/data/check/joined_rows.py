"""All frames of a dataset as columns: each frame once, sorted by episode and frame."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.data.frame_table import FrameTable


@dataclass(frozen=True)
class JoinedRows:
    """Columns over all frames, without repeated frames. A column that a file lacks is None."""

    stored: int
    """Number of rows in the files, including repeated frames."""
    conflicting: int
    """Number of repeated frames whose state or action differs from the first copy."""
    in_order: bool
    """Whether the files hold episodes and frames in ascending order."""
    stored_at: NDArray[np.int64]
    """Place of each frame among the rows of all files, counted on from file to file."""
    episode: NDArray[np.int64]
    """episode_index."""
    frame: NDArray[np.int64]
    """frame_index; without that column, the position in the episode."""
    index: NDArray[np.int64] | None
    task: NDArray[np.int64] | None
    timestamp: NDArray[np.float64] | None
    state: NDArray[Any] | None
    action: NDArray[Any] | None

    def __len__(self) -> int:
        return len(self.episode)

    @cached_property
    def spans(self) -> dict[int, slice]:
        """Episode -> its rows."""
        values, starts = np.unique(self.episode, return_index=True)
        ends = np.append(starts[1:], len(self.episode))
        return {int(v): slice(int(a), int(b)) for v, a, b in zip(values, starts, ends, strict=True)}

    def episodes_where(self, faulty: NDArray[np.bool_]) -> tuple[int, ...]:
        """Return the episodes with at least one faulty row, from a mask over all rows."""
        return tuple(int(e) for e in np.unique(self.episode[faulty]))


def join_rows(files: Sequence[FrameTable]) -> JoinedRows | None:
    """Join the frames of several files, sorted by episode and frame; of a repeated frame the first copy stays.

    Returns:
        None if there is no row, or a file does not state the episode of its rows.
    """
    if not files or any(f.episode_index is None for f in files):
        return None
    episode = _concatenate(files, "episode_index")
    if episode is None or not len(episode):
        return None
    frame = _concatenate(files, "frame_index")
    order = np.arange(len(episode))
    if frame is None:
        by_episode = np.argsort(episode, kind="stable")
        starts = np.unique(episode[by_episode], return_index=True)[1]
        within = np.arange(len(episode)) - np.repeat(starts, np.diff(np.append(starts, len(episode))))
        frame = np.empty_like(episode)
        frame[by_episode] = within
    sort = np.lexsort((order, frame, episode))
    repeated = np.zeros(len(episode), dtype=bool)
    same = (np.diff(episode[sort]) == 0) & (np.diff(frame[sort]) == 0)
    repeated[sort[1:][same]] = True
    chosen = sort[~repeated[sort]]
    first = order[~repeated]
    columns = {name: _concatenate(files, name) for name in ("index", "task_index", "timestamp", "state", "action")}
    return JoinedRows(
        stored=len(episode),
        conflicting=_count_conflicts(sort, same, [columns["state"], columns["action"]]),
        in_order=bool(np.array_equal(first, chosen)),
        stored_at=chosen,
        episode=episode[chosen],
        frame=frame[chosen],
        index=_take(columns["index"], chosen),
        task=_take(columns["task_index"], chosen),
        timestamp=_take(columns["timestamp"], chosen),
        state=_take(columns["state"], chosen),
        action=_take(columns["action"], chosen),
    )


def _concatenate(files: Sequence[FrameTable], name: str) -> NDArray[Any] | None:
    parts = [getattr(f, name) for f in files]
    if any(p is None for p in parts) or len({p.shape[1:] for p in parts}) > 1:
        return None
    return np.concatenate(parts)


def _take(values: NDArray[Any] | None, rows: NDArray[np.int64]) -> NDArray[Any] | None:
    return None if values is None else values[rows]


def _count_conflicts(sort: NDArray[np.int64], same: NDArray[np.bool_], columns: list[NDArray[Any] | None]) -> int:
    differ = np.zeros(int(same.sum()), dtype=bool)
    for values in columns:
        if values is not None:
            a, b = values[sort[:-1][same]], values[sort[1:][same]]
            differ |= ~((a == b) | (np.isnan(a) & np.isnan(b))).all(axis=1)
    return int(differ.sum())
