"""What a repair will do, decided from the files before anything is written."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.errors import DatasetError
from zk0.records import DatasetReport
from zk0.robot.check.cameras import look_at_all
from zk0.robot.check.contents import Contents
from zk0.robot.check.counts import TOLERANCE_SECONDS
from zk0.robot.check.format import DEFAULT_FEATURES
from zk0.robot.check.lost import NOTHING_SEEN, lost_episodes
from zk0.robot.check.numbers import copied_episodes, percent_of, units_of
from zk0.robot.episodes import EpisodeEntry
from zk0.robot.units import Units


@dataclass(frozen=True)
class KeptEpisode:
    """One episode of the copy: where its frames are in the original."""

    entry: EpisodeEntry
    rows: tuple[tuple[str, NDArray[np.int64]], ...]
    """(file, positions in it) in frame order, each frame once."""
    keeps_timestamps: bool
    """Whether the stored timestamps are right and stay as they are, bit for bit."""

    @property
    def length(self) -> int:
        """Frames."""
        return sum(len(positions) for _, positions in self.rows)


@dataclass(frozen=True)
class Plan:
    """Everything that the copy will differ in."""

    repairs: tuple[str, ...]
    """Names of the repairs, as the findings name them."""
    episodes: tuple[KeptEpisode, ...]
    """In the order of the copy: the position becomes the episode_index."""
    dropped: tuple[int, ...]
    renames: dict[str, str]
    units: Units | None
    """Convert states and actions from this unit to degrees."""
    percent: NDArray[np.bool_]
    """Dimensions (grippers from 0 to 100) that are not converted."""
    columns: tuple[str, ...]
    """Columns of the copy, under their old names."""


def plan_repair(contents: Contents, report: DatasetReport) -> Plan:
    """What to do about the findings of a report.

    Raises:
        DatasetError: names every finding that no repair undoes.
    """
    hopeless = [f for f in report.errors if f.repair is None]
    if hopeless:
        raise DatasetError(f"{report.dataset}: cannot be repaired: " + "; ".join(map(str, hopeless)))
    repairs = tuple(dict.fromkeys(f.repair for f in report.findings if f.repair))
    info, rows = contents.info, contents.rows
    if info is None or rows is None or contents.episodes is None:
        raise DatasetError(f"{report.dataset}: cannot be repaired: no readable frames")
    seen = look_at_all(contents) if any(f.rule.startswith("undecodable") for f in report.findings) else NOTHING_SEEN
    gone = lost_episodes(contents, seen) | set(copied_episodes(contents))
    entries = sorted((e for e in contents.episodes if e.index not in gone), key=lambda e: e.index)
    if not entries:
        raise DatasetError(f"{report.dataset}: cannot be repaired: no episode would be left")
    renames = {old: new for old, new in contents.renames.items() if old != new}
    if renames and "rename-keys" not in repairs:
        repairs = (*repairs, "rename-keys")
    videos = set(info.video_keys)
    declared = [c for c in {**info.features, **DEFAULT_FEATURES} if c not in videos]
    return Plan(
        repairs=repairs,
        episodes=tuple(_kept(contents, e) for e in entries),
        dropped=tuple(sorted(e.index for e in contents.episodes if e.index in gone)),
        renames=renames,
        units=units_of(contents) if "convert-units" in repairs else None,
        percent=percent_of(contents),
        columns=tuple(c for c in declared if all(c in f.types for f in contents.frames)),
    )


def _kept(contents: Contents, entry: EpisodeEntry) -> KeptEpisode:
    parts: list[tuple[str, NDArray[np.int64], NDArray[np.int64]]] = []
    seen: set[int] = set()
    for file in contents.frames:
        assert file.episode_index is not None
        positions = np.flatnonzero(file.episode_index == entry.index)
        frames = np.arange(len(positions)) if file.frame_index is None else file.frame_index[positions]
        order = np.argsort(frames, kind="stable")
        numbers, first = np.unique(frames[order], return_index=True)
        fresh = np.asarray([n not in seen for n in numbers.tolist()], dtype=bool)
        seen.update(numbers.tolist())
        if fresh.any():
            parts.append((file.file, positions[order][first][fresh], numbers[fresh]))
    parts.sort(key=lambda p: int(p[2][0]))
    return KeptEpisode(entry, tuple((f, p) for f, p, _ in parts), _right_times(contents, entry))


def _right_times(contents: Contents, entry: EpisodeEntry) -> bool:
    rows, info = contents.rows, contents.info
    if rows is None or info is None or rows.timestamp is None:
        return False
    times: NDArray[Any] = rows.timestamp[rows.spans[entry.index]]
    return bool((np.abs(times - np.arange(len(times)) / info.fps) <= TOLERANCE_SECONDS).all())
