"""All that the rules look at, read once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.records import ACTION, STATE, Finding
from zk0.robot.episodes import EpisodeEntry, read_episode_table, read_task_table
from zk0.robot.folder import BrokenFile, Folder, list_folder
from zk0.robot.frames import Frames, read_frames
from zk0.robot.info import DatasetInfo, read_info

STATISTICS_PATH = "meta/stats.json"


@dataclass(frozen=True)
class Contents:
    """One data set as its files tell it. What could not be read is None, and `broken` says why."""

    folder: Folder
    info: DatasetInfo | None
    episodes: tuple[EpisodeEntry, ...] | None
    tasks: dict[int, str] | None
    statistics: dict[str, Any] | None
    frames: tuple[Frames, ...]
    """Every readable parquet file below data/ that the episode table names, in LeRobot's order."""
    stray: tuple[Frames, ...]
    """Readable parquet files below data/ that nothing names; LeRobot reads them all the same."""
    broken: tuple[Finding, ...]

    def column(self, name: str) -> NDArray[Any] | None:
        """One column over all named files; None if a file lacks it or the widths differ."""
        parts = [getattr(f, name) for f in self.frames]
        if not parts or any(p is None for p in parts) or len({p.shape[1:] for p in parts}) > 1:
            return None
        return np.concatenate(parts)

    @cached_property
    def episode_index(self) -> NDArray[np.int64] | None:
        """The episode of every row."""
        return self.column("episode_index")

    @cached_property
    def frame_index(self) -> NDArray[np.int64] | None:
        """The frame within its episode of every row."""
        return self.column("frame_index")

    @cached_property
    def timestamp(self) -> NDArray[np.float64] | None:
        """Seconds of every row."""
        return self.column("timestamp")

    @cached_property
    def state(self) -> NDArray[Any] | None:
        """(rows, dims)"""
        return self.column("state")

    @cached_property
    def action(self) -> NDArray[Any] | None:
        """(rows, dims)"""
        return self.column("action")

    @cached_property
    def rows(self) -> int:
        """Rows in all named files."""
        return sum(f.rows for f in self.frames)


def read_contents(root: Path) -> Contents:
    """A data set's files, whatever their condition; nothing outside `root` is opened.

    Raises:
        DatasetError: there is no such folder.
    """
    folder = list_folder(root)
    broken: list[Finding] = []

    def attempt[T](rule: str, read: Callable[[], T], repair: str | None = None) -> T | None:
        try:
            return read()
        except BrokenFile as e:
            broken.append(Finding(rule=rule, where=e.where, found=e.found, expected=e.expected, repair=repair))
            return None

    info = attempt("info", lambda: read_info(folder))
    if info is None:
        return Contents(folder, None, None, None, None, (), (), tuple(broken))
    episodes = attempt("episode-table", lambda: read_episode_table(folder, info))
    tasks = attempt("task-table", lambda: read_task_table(folder, info))
    statistics = attempt("statistics-missing", lambda: folder.json(STATISTICS_PATH), "recompute-statistics")
    named = {e.data_file for e in episodes or ()}
    read = {
        file: attempt("unreadable-data", lambda file=file: read_frames(folder, file, STATE, ACTION))  # type: ignore[misc]
        for file in folder.under("data", ".parquet")
    }
    frames = tuple(f for file, f in read.items() if f is not None and (file in named or episodes is None))
    stray = tuple(f for file, f in read.items() if f is not None and file not in named and episodes is not None)
    return Contents(folder, info, episodes, tasks, statistics, frames, stray, tuple(broken))
