"""The content of a dataset, read once for all rules of the check."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from zk0.data.check.clip_places import ClipPlaces, EpisodeClip, moved_videos, place_clips
from zk0.data.check.joined_rows import JoinedRows, join_rows
from zk0.data.check.lfs_pointers import find_lfs_pointers
from zk0.data.check.motion_measures import Motion, measure_motion
from zk0.data.check.reading_rules import (
    EPISODE_TABLE,
    INFO,
    STATISTICS_MISSING,
    TASK_TABLE,
    UNREADABLE_DATA,
    UNREADABLE_VIDEO,
)
from zk0.data.check.rebuilt_tables import NotCertain, rebuild_episodes, rebuild_tasks
from zk0.data.check.rule import Rule, Severity, Violation
from zk0.data.check.true_rate import are_equal_rates, clock_rate
from zk0.data.dataset_folder import BrokenFile, DatasetFolder, list_folder
from zk0.data.dataset_info import DatasetInfo, read_dataset_info, resolve_renames
from zk0.data.episode_table import (
    EPISODE_STATISTICS_PATH,
    EpisodeEntry,
    VideoClip,
    read_episode_table,
    read_task_table,
)
from zk0.data.frame_progress import FrameProgress, no_progress
from zk0.data.frame_table import EpisodeFrames, FrameTable, read_frame_table
from zk0.data.video_file import VideoFile, probe_video
from zk0.records import ACTION, STATE, Finding

STATISTICS_PATH = "meta/stats.json"


@dataclass(frozen=True)
class Contents:
    """The content of one dataset. What cannot be read is None, and `unreadable` has a finding for it."""

    folder: DatasetFolder
    given_renames: Mapping[str, str]
    """Feature key in the dataset -> key in the contract, from the settings."""
    info: DatasetInfo | None = None
    episodes: tuple[EpisodeEntry, ...] | None = None
    tasks: dict[int, str] | None = None
    """task_index -> task text."""
    statistics: dict[str, Any] | None = None
    """The content of meta/stats.json."""
    frame_tables: tuple[FrameTable, ...] = ()
    """Every readable parquet file below data/ that the episode table names, in LeRobot's order."""
    rows: JoinedRows | None = None
    """All frames of `frame_tables`, each once; None if a file does not state the episode of its rows."""
    orphan_tables: tuple[FrameTable, ...] = ()
    """Readable parquet files below data/ that the episode table does not name; LeRobot reads them too."""
    videos: tuple[VideoFile, ...] = ()
    """Every readable video that the episode table names, wherever it lies."""
    moved: Mapping[str, str] = field(default_factory=dict)
    """Path that the episode table names -> path where that video lies instead."""
    unreadable: tuple[Finding, ...] = ()
    progress: FrameProgress = no_progress
    """Called while episodes are compared with each other."""

    @cached_property
    def renames(self) -> dict[str, str]:
        """Feature key in the dataset -> canonical key: the given renames and the obvious ones."""
        return resolve_renames(self.info, self.given_renames) if self.info else {}

    @property
    def state_key(self) -> str:
        """The dataset's feature key for the state."""
        return _stored_key(self.renames, STATE)

    @property
    def action_key(self) -> str:
        """The dataset's feature key for the action."""
        return _stored_key(self.renames, ACTION)

    @cached_property
    def spans(self) -> dict[int, slice]:
        """Episode -> its rows in `rows`; only episodes of the episode table, or all of them if there is no table."""
        spans = self.rows.spans if self.rows else {}
        listed = None if self.episodes is None else {e.index for e in self.episodes}
        return {e: s for e, s in spans.items() if listed is None or e in listed}

    @cached_property
    def motion(self) -> Motion | None:
        """Motion of the episodes; None if states or actions are missing or all episodes are too short."""
        rows = self.rows
        if rows is None or rows.state is None or rows.action is None:
            return None
        return measure_motion({e: EpisodeFrames(rows.state[s], rows.action[s]) for e, s in self.spans.items()})

    def length(self, episode: EpisodeEntry) -> int:
        """Return the frames of an episode, from its first to its last frame_index; without rows, the table's length."""
        span = self.rows.spans.get(episode.index) if self.rows else None
        if self.rows is None or span is None:
            return episode.length
        frame = self.rows.frame[span]
        return int(frame[-1] - frame[0]) + 1

    @cached_property
    def video_by_file(self) -> dict[str, VideoFile]:
        """Path -> video of all `videos`."""
        return {v.file: v for v in self.videos}

    def videos_of(self, key: str) -> dict[str, VideoFile]:
        """Return path -> video of one camera's readable videos."""
        named = {self.clip(e, key).file for e in self.episodes or () if key in e.clips}
        return {f: v for f, v in self.video_by_file.items() if f in named}

    @cached_property
    def absent_cameras(self) -> tuple[str, ...]:
        """Cameras of which no video exists at all, while another camera has some."""
        keys = self.info.video_keys if self.info and self.episodes else ()
        absent = [k for k in keys if all(self.clip(e, k).file not in self.folder for e in self.episodes or ())]
        return tuple(absent) if len(absent) < len(self.info.cameras if self.info else ()) else ()

    @cached_property
    def clock(self) -> float | None:
        """Frames per second of the stored timestamps, if their clock is regular in all episodes."""
        rows = self.rows
        if rows is None or rows.timestamp is None:
            return None
        return clock_rate((rows.frame[s], rows.timestamp[s]) for s in self.spans.values())

    @cached_property
    def fps(self) -> float:
        """Frames per second: of meta/info.json, or the other rate that the clock and all videos agree on."""
        assert self.info is not None
        rates = [v.fps for v in self.videos if v.fps is not None]
        if self.clock is None or not rates or are_equal_rates([self.clock], self.info.fps):
            return self.info.fps
        return self.clock if are_equal_rates(rates, self.clock) else self.info.fps

    @cached_property
    def places(self) -> ClipPlaces:
        """Every clip of the episode table, corrected where the files prove another place."""
        episodes = self.episodes or ()
        if not episodes:
            return ClipPlaces({}, frozenset())
        lengths = {e.index: self.length(e) for e in episodes}
        lost = {e.index: self._lost_beginning(e) for e in episodes}
        return place_clips(episodes, lengths, lost, self.fps, self.video_by_file, self.moved)

    def _lost_beginning(self, episode: EpisodeEntry) -> int:
        """Return how many frames of the clip come before the first row, because its rows are lost.

        The table counts them, and the rows go on to the last frame that it counts.
        """
        span = self.rows.spans.get(episode.index) if self.rows else None
        if self.rows is None or span is None:
            return 0
        first, last = int(self.rows.frame[span][0]), int(self.rows.frame[span][-1])
        return first if last < episode.length else 0

    def clip(self, episode: EpisodeEntry, key: str) -> VideoClip:
        """Return the clip of one camera of an episode, where its frames are."""
        return self.places.clips[episode.index, key]

    def videos_of_episode(self, episode: EpisodeEntry) -> set[str]:
        """Return the videos in which an episode has a clip."""
        return {self.clip(episode, key).file for key in episode.clips}

    def clips_by_file(self, key: str) -> dict[str, list[EpisodeClip]]:
        """Return video -> the clips of one camera in it, in the order of the episode table."""
        by_file: dict[str, list[EpisodeClip]] = defaultdict(list)
        for e in self.episodes or ():
            clip = self.clip(e, key)
            by_file[clip.file].append(EpisodeClip(e.index, clip, self.length(e)))
        return by_file


class _Reader:
    """Reads what can be read, and collects a finding for each file that cannot."""

    def __init__(self) -> None:
        self.unreadable: list[Finding] = []

    def read[T](
        self,
        rule: Rule,
        read: Callable[[], T],
        *,
        severity: Severity | None = None,
        repair: str | None = None,
        repairable: bool = True,
    ) -> T | None:
        try:
            return read()
        except BrokenFile as e:
            violation = Violation(e.where, e.found, e.expected, severity, repair, repairable)
            self.unreadable.append(rule.finding(violation))
            return None


def read_contents(
    root: Path, rename: Mapping[str, str] | None = None, progress: FrameProgress = no_progress
) -> Contents:
    """Read a dataset's files, whatever their condition; nothing outside `root` is opened.

    Args:
        root: the dataset's folder.
        rename: feature key in the dataset -> key in the contract.
        progress: called while episodes are compared with each other.

    Raises:
        DatasetError: there is no such folder.
    """
    folder = list_folder(root)
    given = dict(rename or {})
    if pointers := find_lfs_pointers(folder):
        return Contents(folder, given, unreadable=(pointers,))
    reader = _Reader()
    info = reader.read(INFO, lambda: read_dataset_info(folder))
    if info is None:
        return Contents(folder, given, unreadable=tuple(reader.unreadable))
    tasks, broken_tasks = _read_tasks(folder, info)
    episodes = _read_episodes(folder, info, tasks or {}, reader)
    statistics = None
    if STATISTICS_PATH in folder or EPISODE_STATISTICS_PATH not in folder or info.is_v3:
        statistics = reader.read(STATISTICS_MISSING, lambda: _read_statistics(folder), severity="error")
    named = None if episodes is None else {e.data_file for e in episodes}
    tables = _read_frame_tables(folder, resolve_renames(info, given), named, reader)
    used = None if episodes is None else _used_tables(tables, episodes, folder)
    videos = _probe_videos(folder, episodes or (), reader)
    frame_tables = tuple(t for t in tables if used is None or t.file in used)
    rows = join_rows(frame_tables)
    lengths = {e: s.stop - s.start for e, s in rows.spans.items()} if rows else {}
    moved = moved_videos(folder, episodes or (), lengths, videos)
    if broken_tasks is not None:
        tasks = rebuild_tasks(episodes or (), tables)
        reader.unreadable.append(_task_table_finding(broken_tasks, repairable=tasks is not None))
    return Contents(
        folder=folder,
        given_renames=given,
        info=info,
        episodes=episodes,
        tasks=tasks,
        statistics=statistics,
        frame_tables=frame_tables,
        rows=rows,
        orphan_tables=tuple(t for t in tables if used is not None and t.file not in used),
        videos=tuple(v for f, v in sorted(videos.items())) + _probe_moved(folder, moved, videos, reader),
        moved=moved,
        unreadable=tuple(reader.unreadable),
        progress=progress,
    )


def _read_tasks(folder: DatasetFolder, info: DatasetInfo) -> tuple[dict[int, str] | None, BrokenFile | None]:
    """Return the task table, or None and what is wrong with it."""
    try:
        return read_task_table(folder, info), None
    except BrokenFile as e:
        return None, e


def _task_table_finding(broken: BrokenFile, *, repairable: bool) -> Finding:
    doubt = "; the episode table does not prove which text each task has. Copy it from where it was recorded"
    expected = broken.expected if repairable else broken.expected + doubt
    return TASK_TABLE.finding(Violation(broken.where, broken.found, expected, repairable=repairable))


def _read_episodes(
    folder: DatasetFolder, info: DatasetInfo, tasks: Mapping[int, str], reader: _Reader
) -> tuple[EpisodeEntry, ...] | None:
    """Return the episode table; that of an interrupted recording is built again if that is certain."""
    try:
        return read_episode_table(folder, info)
    except BrokenFile as e:
        rebuilt, expected = None, e.expected
        try:
            rebuilt = _rebuild(folder, info, tasks)
        except NotCertain as doubt:
            expected = f"{e.expected}; it cannot be built again: {doubt}. Copy it from where it was recorded"
        violation = Violation(e.where, e.found, expected, repairable=rebuilt is not None)
        reader.unreadable.append(EPISODE_TABLE.finding(violation))
        return rebuilt


def _rebuild(folder: DatasetFolder, info: DatasetInfo, tasks: Mapping[int, str]) -> tuple[EpisodeEntry, ...]:
    rows = _Reader()
    tables = _read_frame_tables(folder, resolve_renames(info, {}), None, rows)
    if rows.unreadable:
        raise NotCertain(f"{rows.unreadable[0].where} is {rows.unreadable[0].found}")
    return rebuild_episodes(folder, info, tables, tasks)


def _read_frame_tables(
    folder: DatasetFolder, renames: Mapping[str, str], named: set[str] | None, reader: _Reader
) -> list[FrameTable]:
    keys = _stored_key(renames, STATE), _stored_key(renames, ACTION)
    found = []
    for file in folder.files_under("data", ".parquet"):
        repair = "drop-episodes" if named and file in named else "remove-orphans"
        read = partial(read_frame_table, folder, file, *keys)
        table = reader.read(UNREADABLE_DATA, read, repair=repair, repairable=named is not None)
        found += [] if table is None else [table]
    return found


def _used_tables(tables: Sequence[FrameTable], episodes: Sequence[EpisodeEntry], folder: DatasetFolder) -> set[str]:
    """Return the files that the episode table names, and those with the rows that these lack.

    Such a file holds an episode of which no named file has a row, or only rows that complete the named files' episodes.
    """
    named = {e.data_file for e in episodes}
    held = {t.file: set(np.unique(t.episode_index).tolist()) for t in tables if t.episode_index is not None}
    found = set().union(*(numbers for file, numbers in held.items() if file in named))
    homeless = {e.index for e in episodes if e.data_file not in folder or e.data_file in held} - found
    used = named | {file for file, numbers in held.items() if homeless & numbers}
    return used | _completing_tables(tables, {e.index: e.length for e in episodes}, used)


def _completing_tables(tables: Sequence[FrameTable], lengths: Mapping[int, int], used: set[str]) -> set[str]:
    """Return the other files, if they hold exactly those frames of listed episodes that the used files lack."""
    rest = [t for t in tables if t.file not in used and t.episode_index is not None and t.frame_index is not None]
    found: dict[int, list[int]] = defaultdict(list)
    for e, frame in _numbers(rest):
        found[e].append(frame)
    if not found:
        return set()
    for e, frame in _numbers([t for t in tables if t.file in used]):
        if e in found:
            found[e].append(frame)
    is_whole = all(sorted(frames) == list(range(lengths.get(e, -1))) for e, frames in found.items())
    return {t.file for t in rest} if is_whole else set()


def _numbers(tables: Sequence[FrameTable]) -> Iterator[tuple[int, int]]:
    """Yield (episode, frame) of every row."""
    for t in tables:
        if t.episode_index is not None and t.frame_index is not None:
            yield from zip(t.episode_index.tolist(), t.frame_index.tolist(), strict=True)


def _probe_videos(folder: DatasetFolder, episodes: Sequence[EpisodeEntry], reader: _Reader) -> dict[str, VideoFile]:
    """Return path -> video of every readable video that the episode table names."""
    files = sorted({clip.file for e in episodes for clip in e.clips.values()})
    read = {f: reader.read(UNREADABLE_VIDEO, partial(probe_video, folder, f)) for f in files if f in folder}
    return {f: v for f, v in read.items() if v is not None}


def _probe_moved(
    folder: DatasetFolder, moved: Mapping[str, str], known: Mapping[str, VideoFile], reader: _Reader
) -> tuple[VideoFile, ...]:
    """Return the readable videos that the episode table names by another path."""
    files = sorted(set(moved.values()) - known.keys())
    read = [reader.read(UNREADABLE_VIDEO, partial(probe_video, folder, f)) for f in files]
    return tuple(v for v in read if v is not None)


def _stored_key(renames: Mapping[str, str], key: str) -> str:
    return next((old for old, new in renames.items() if new == key), key)


def _read_statistics(folder: DatasetFolder) -> dict[str, Any]:
    raw = folder.read_json(STATISTICS_PATH)
    if not isinstance(raw, dict) or not all(isinstance(v, dict) for v in raw.values()):
        raise BrokenFile(STATISTICS_PATH, repr(raw)[:80], "an object of statistics for each feature")
    return raw
