"""The plan of a repair: what the copy will contain, decided before anything is written."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.data.check.contents import Contents
from zk0.data.check.detected_units import detect_percent_grippers, detect_units
from zk0.data.check.lost_episode_rules import lost_episodes
from zk0.data.check.observed_frames import ObservedFrames
from zk0.data.check.value_rules import copied_episodes
from zk0.data.dataset_info import DEFAULT_FEATURES, TOLERANCE_SECONDS
from zk0.data.episode_table import EpisodeEntry
from zk0.data.units import Units
from zk0.errors import DatasetError
from zk0.records import DatasetReport


@dataclass(frozen=True)
class CopiedEpisode:
    """One episode of the copy, and where its frames are in the original."""

    entry: EpisodeEntry
    rows: tuple[tuple[str, NDArray[np.int64]], ...]
    """(file, row numbers in it) of every file that holds some of its frames, each frame once."""
    order: NDArray[np.int64]
    """(frames,) place of each frame among `rows`, one file after the other."""
    valid_timestamps: bool
    """Whether the stored timestamps are right; then they are copied bit for bit."""

    @property
    def length(self) -> int:
        """Number of frames."""
        return sum(len(positions) for _, positions in self.rows)


@dataclass(frozen=True)
class RepairPlan:
    """Everything in which the copy will differ from the original."""

    repairs: tuple[str, ...]
    """Names of the repairs, in the order of the findings that ask for them."""
    episodes: tuple[CopiedEpisode, ...]
    """In the order of the copy: the position becomes the episode_index."""
    dropped: tuple[int, ...]
    """Episodes of the original that the copy lacks."""
    renames: dict[str, str]
    """Feature key in the original -> feature key in the copy."""
    units: Units | None
    """Convert states and actions from this unit to degrees; None: do not convert."""
    unchanged: NDArray[np.bool_]
    """(dims,) mask of the dimensions (grippers from 0 to 100) that are not converted."""
    columns: tuple[str, ...]
    """Columns of the copy, under their names in the original."""


def plan_repair(contents: Contents, report: DatasetReport, observed: ObservedFrames) -> RepairPlan:
    """Decide how to repair the findings of a report; `observed` are the decoded frames that it is about.

    Raises:
        DatasetError: an error cannot be repaired (names all such), or no episode would be left.
    """
    unrepairable = [f for f in report.errors if f.repair is None]
    if unrepairable:
        raise DatasetError(f"{report.dataset}: cannot be repaired: " + "; ".join(map(str, unrepairable)))
    repairs = tuple(dict.fromkeys(f.repair for f in report.findings if f.repair))
    info, rows = contents.info, contents.rows
    if info is None or rows is None or contents.episodes is None:
        raise DatasetError(f"{report.dataset}: cannot be repaired: no readable frames")
    gone = lost_episodes(contents, observed) | set(copied_episodes(contents))
    entries = sorted((e for e in contents.episodes if e.index not in gone), key=lambda e: e.index)
    if not entries:
        raise DatasetError(f"{report.dataset}: cannot be repaired: no episode would be left")
    renames = {old: new for old, new in contents.renames.items() if old != new}
    if renames and "rename-keys" not in repairs:
        repairs = (*repairs, "rename-keys")
    videos = set(info.video_keys)
    declared = [c for c in {**info.features, **DEFAULT_FEATURES} if c not in videos]
    return RepairPlan(
        repairs=repairs,
        episodes=tuple(_copied_episode(contents, e) for e in entries),
        dropped=tuple(sorted(e.index for e in contents.episodes if e.index in gone)),
        renames=renames,
        units=detect_units(contents) if "convert-units" in repairs else None,
        unchanged=detect_percent_grippers(contents),
        columns=tuple(c for c in declared if all(c in t.types for t in contents.frame_tables)),
    )


def _copied_episode(contents: Contents, entry: EpisodeEntry) -> CopiedEpisode:
    assert contents.rows is not None
    places = contents.rows.stored_at[contents.rows.spans[entry.index]]
    ends = np.cumsum([t.rows for t in contents.frame_tables])
    files = np.searchsorted(ends, places, side="right")
    used = np.unique(files).tolist()
    tables = contents.frame_tables
    rows = tuple((tables[f].file, places[files == f] - (ends[f] - tables[f].rows)) for f in used)
    order = np.argsort(np.argsort(files, kind="stable"), kind="stable")
    return CopiedEpisode(entry, rows, order, _has_valid_timestamps(contents, entry))


def _has_valid_timestamps(contents: Contents, entry: EpisodeEntry) -> bool:
    rows, info = contents.rows, contents.info
    if rows is None or info is None or rows.timestamp is None:
        return False
    times: NDArray[Any] = rows.timestamp[rows.spans[entry.index]]
    return bool((np.abs(times - np.arange(len(times)) / contents.fps) <= TOLERANCE_SECONDS).all())
