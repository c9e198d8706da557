"""All frames of a data set as columns, each frame once, in the order of episodes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.robot.frames import Frames


@dataclass(frozen=True)
class Rows:
    """Columns over all frames, repeated frames left out. A column that a file lacks is None."""

    stored: int
    """Rows in the files, repeated ones too."""
    conflicting: int
    """Repeated frames whose numbers differ from the first."""
    in_order: bool
    """Whether the files hold episodes and frames in ascending order."""
    episode: NDArray[np.int64]
    frame: NDArray[np.int64]
    """frame_index, or the position in the episode where there is no such column."""
    index: NDArray[np.int64] | None
    task: NDArray[np.int64] | None
    timestamp: NDArray[np.float64] | None
    state: NDArray[Any] | None
    action: NDArray[Any] | None

    def __len__(self) -> int:
        return len(self.episode)

    @cached_property
    def spans(self) -> dict[int, slice]:
        """Where each episode's rows lie."""
        values, starts = np.unique(self.episode, return_index=True)
        ends = np.append(starts[1:], len(self.episode))
        return {int(v): slice(int(a), int(b)) for v, a, b in zip(values, starts, ends, strict=True)}

    def episodes_where(self, faulty: NDArray[np.bool_]) -> tuple[int, ...]:
        """The episodes with at least one faulty row."""
        return tuple(int(e) for e in np.unique(self.episode[faulty]))


def join_rows(files: Sequence[Frames]) -> Rows | None:
    """The frames of several files, sorted by episode and frame, the first of each repeated frame kept."""
    if not files or any(f.episode_index is None for f in files):
        return None
    episode = _joined(files, "episode_index")
    if episode is None or not len(episode):
        return None
    frame = _joined(files, "frame_index")
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
    kept = sort[~repeated[sort]]
    first = order[~repeated]
    columns = {name: _joined(files, name) for name in ("index", "task_index", "timestamp", "state", "action")}
    return Rows(
        stored=len(episode),
        conflicting=_conflicts(sort, same, [columns["state"], columns["action"]]),
        in_order=bool(np.array_equal(first, kept)),
        episode=episode[kept],
        frame=frame[kept],
        index=_take(columns["index"], kept),
        task=_take(columns["task_index"], kept),
        timestamp=_take(columns["timestamp"], kept),
        state=_take(columns["state"], kept),
        action=_take(columns["action"], kept),
    )


def _joined(files: Sequence[Frames], name: str) -> NDArray[Any] | None:
    parts = [getattr(f, name) for f in files]
    if any(p is None for p in parts) or len({p.shape[1:] for p in parts}) > 1:
        return None
    return np.concatenate(parts)


def _take(values: NDArray[Any] | None, rows: NDArray[np.int64]) -> NDArray[Any] | None:
    return None if values is None else values[rows]


def _conflicts(sort: NDArray[np.int64], same: NDArray[np.bool_], columns: list[NDArray[Any] | None]) -> int:
    differ = np.zeros(int(same.sum()), dtype=bool)
    for values in columns:
        if values is not None:
            a, b = values[sort[:-1][same]], values[sort[1:][same]]
            differ |= ~((a == b) | (np.isnan(a) & np.isnan(b))).all(axis=1)
    return int(differ.sum())
