"""All that the rules look at, read once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from zk0.records import ACTION, STATE, Finding
from zk0.robot.check.rows import Rows, join_rows
from zk0.robot.episodes import EpisodeEntry, read_episode_table, read_task_table
from zk0.robot.folder import BrokenFile, Folder, list_folder
from zk0.robot.frames import Frames, read_frames
from zk0.robot.info import DatasetInfo, read_info, resolve_renames
from zk0.robot.video_file import VideoFile, read_video

STATISTICS_PATH = "meta/stats.json"
EPISODE_STATISTICS_PATH = "meta/episodes_stats.jsonl"
"""What v2.1 has instead."""


@dataclass(frozen=True)
class Contents:
    """One data set as its files tell it. What could not be read is None, and `broken` says why."""

    folder: Folder
    given_renames: Mapping[str, str]
    """Feature key in the data set -> key in the contract, as asked for."""
    info: DatasetInfo | None = None
    episodes: tuple[EpisodeEntry, ...] | None = None
    tasks: dict[int, str] | None = None
    statistics: dict[str, Any] | None = None
    frames: tuple[Frames, ...] = ()
    """Every readable parquet file below data/ that the episode table names, in LeRobot's order."""
    stray: tuple[Frames, ...] = ()
    """Readable parquet files below data/ that nothing names; LeRobot reads them all the same."""
    videos: tuple[VideoFile, ...] = ()
    """Every readable video that the episode table names."""
    broken: tuple[Finding, ...] = ()

    @cached_property
    def renames(self) -> dict[str, str]:
        """Feature key in the data set -> proper key: those asked for and the obvious ones."""
        return resolve_renames(self.info, self.given_renames) if self.info else {}

    @property
    def state_key(self) -> str:
        """What the data set calls the state."""
        return _old(self.renames, STATE)

    @property
    def action_key(self) -> str:
        """What the data set calls the action."""
        return _old(self.renames, ACTION)

    @cached_property
    def rows(self) -> Rows | None:
        """All named frames, each once; None where the files do not say which episode a row belongs to."""
        return join_rows(self.frames)

    @cached_property
    def spans(self) -> dict[int, slice]:
        """Where the rows of each episode of the table lie; of every episode where there is no table."""
        spans = self.rows.spans if self.rows else {}
        listed = None if self.episodes is None else {e.index for e in self.episodes}
        return {e: s for e, s in spans.items() if listed is None or e in listed}

    def length(self, episode: EpisodeEntry) -> int:
        """Frames that an episode spans in data (a gap counts), else those that the table counts."""
        span = self.rows.spans.get(episode.index) if self.rows else None
        if self.rows is None or span is None:
            return episode.length
        frame = self.rows.frame[span]
        return int(frame[-1] - frame[0]) + 1

    @cached_property
    def video_by_file(self) -> dict[str, VideoFile]:
        """The readable named videos by path."""
        return {v.file: v for v in self.videos}


class _Attempts:
    """Reads what can be read, and keeps a finding for what cannot."""

    def __init__(self) -> None:
        self.broken: list[Finding] = []

    def read[T](self, rule: str, read: Callable[[], T], repair: str | None = None) -> T | None:
        try:
            return read()
        except BrokenFile as e:
            self.broken.append(Finding(rule=rule, where=e.where, found=e.found, expected=e.expected, repair=repair))
            return None


def read_contents(root: Path, rename: Mapping[str, str] | None = None) -> Contents:
    """A data set's files, whatever their condition; nothing outside `root` is opened.

    Raises:
        DatasetError: there is no such folder.
    """
    folder = list_folder(root)
    given = dict(rename or {})
    attempts = _Attempts()
    info = attempts.read("info", lambda: read_info(folder))
    if info is None:
        return Contents(folder, given, broken=tuple(attempts.broken))
    episodes = attempts.read("episode-table", lambda: read_episode_table(folder, info))
    tasks = attempts.read("task-table", lambda: read_task_table(folder, info))
    statistics = None
    if STATISTICS_PATH in folder or EPISODE_STATISTICS_PATH not in folder or info.is_v3:
        statistics = attempts.read("statistics-missing", lambda: _read_statistics(folder), "recompute-statistics")
    named = None if episodes is None else {e.data_file for e in episodes}
    tables = _read_tables(folder, resolve_renames(info, given), named, attempts)
    return Contents(
        folder=folder,
        given_renames=given,
        info=info,
        episodes=episodes,
        tasks=tasks,
        statistics=statistics,
        frames=tuple(t for t in tables if named is None or t.file in named),
        stray=tuple(t for t in tables if named is not None and t.file not in named),
        videos=_read_videos(folder, episodes or (), attempts),
        broken=tuple(attempts.broken),
    )


def _read_tables(
    folder: Folder, renames: Mapping[str, str], named: set[str] | None, attempts: _Attempts
) -> list[Frames]:
    keys = _old(renames, STATE), _old(renames, ACTION)
    found = []
    for file in folder.under("data", ".parquet"):
        repair = None if named is None else "drop-episodes" if file in named else "remove-orphans"
        table = attempts.read("unreadable-data", partial(read_frames, folder, file, *keys), repair)
        found += [] if table is None else [table]
    return found


def _read_videos(folder: Folder, episodes: Sequence[EpisodeEntry], attempts: _Attempts) -> tuple[VideoFile, ...]:
    files = sorted({clip.file for e in episodes for clip in e.clips.values()})
    read = [
        attempts.read("unreadable-video", partial(read_video, folder, f), "drop-episodes") for f in files if f in folder
    ]
    return tuple(v for v in read if v is not None)


def _old(renames: Mapping[str, str], key: str) -> str:
    return next((old for old, new in renames.items() if new == key), key)


def _read_statistics(folder: Folder) -> dict[str, Any]:
    raw = folder.json(STATISTICS_PATH)
    if not isinstance(raw, dict) or not all(isinstance(v, dict) for v in raw.values()):
        raise BrokenFile(STATISTICS_PATH, repr(raw)[:80], "an object of moments for each feature")
    return raw
