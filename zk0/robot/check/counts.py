"""Rules about counts and numbering: how many frames and episodes, in which order, at which time."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from zk0.records import Finding
from zk0.robot.check import say
from zk0.robot.check.contents import Contents
from zk0.robot.info import INFO_PATH

TOLERANCE_SECONDS = 1e-4
"""LeRobot's own `tolerance_s`."""


def episode_count(contents: Contents) -> Iterator[Finding]:
    """info.json counts the episodes of the table."""
    if contents.info and contents.episodes is not None and contents.info.total_episodes != len(contents.episodes):
        yield Finding(
            rule="episode-count",
            where=f"{INFO_PATH} total_episodes",
            found=str(contents.info.total_episodes),
            expected=f"{len(contents.episodes)}, the episodes in the table",
            repair="recount",
        )


def frame_count(contents: Contents) -> Iterator[Finding]:
    """info.json counts the frames that are there."""
    if contents.info and contents.rows and contents.info.total_frames != len(contents.rows):
        yield Finding(
            rule="frame-count",
            where=f"{INFO_PATH} total_frames",
            found=str(contents.info.total_frames),
            expected=f"{len(contents.rows)}, the frames in data",
            repair="recount",
        )


def episode_length(contents: Contents) -> Iterator[Finding]:
    """The table counts the frames of each episode."""
    if contents.rows is None:
        return
    spans = contents.rows.spans
    wrong = [e for e in contents.episodes or () if e.index in spans and e.length != _size(spans[e.index])]
    if wrong:
        first = wrong[0]
        yield Finding(
            rule="episode-length",
            where=say.episodes([e.index for e in wrong]),
            found=f"length {first.length} in the table",
            expected=f"{_size(spans[first.index])}, the frames in data",
            repair="recount",
        )


def unlisted_rows(contents: Contents) -> Iterator[Finding]:
    """Every row belongs to an episode of the table."""
    if contents.rows is None or contents.episodes is None:
        return
    unknown = sorted(set(contents.rows.spans) - {e.index for e in contents.episodes})
    empty = [e for e in contents.episodes if e.index not in contents.spans and e.data_file in contents.folder]
    if unknown:
        yield Finding(
            rule="unlisted-rows",
            where="data episode_index",
            found=f"rows of {say.episodes(unknown)}",
            expected="only episodes of the table",
            repair=None if empty else "drop-rows",  # rows for none and episodes without rows: numbers cannot be trusted
        )


def misplaced_rows(contents: Contents) -> Iterator[Finding]:
    """An episode's rows lie in the file that the table names for it."""
    named = {e.index: e.data_file for e in contents.episodes or ()}
    wrong = [
        (int(e), f.file)
        for f in contents.frames
        if f.episode_index is not None
        for e in np.unique(f.episode_index)
        if named.get(int(e), f.file) != f.file
    ]
    if wrong and contents.info:
        episode, file = wrong[0]
        yield Finding(
            rule="misplaced-rows",
            where=say.episodes(sorted({e for e, _ in wrong})),
            found=f"rows of episode {episode} in {file}",
            expected=named[episode],
            repair="recount" if contents.info.is_v3 else None,  # v2: is the row's number wrong, or the file's?
        )


def episode_numbers(contents: Contents) -> Iterator[Finding]:
    """Episodes are numbered 0 to n-1 in order: LeRobot looks them up by position."""
    numbers = [e.index for e in contents.episodes or ()]
    if numbers != list(range(len(numbers))):
        twice = len(numbers) - len(set(numbers))
        yield Finding(
            rule="episode-numbers",
            where="episode table",
            found=f"{say.episodes(numbers)}" + (f", {twice} of them twice" if twice else ""),
            expected=f"0 to {len(numbers) - 1}, each once, in order",
            repair=None if twice else "renumber",
        )


def boundaries(contents: Contents) -> Iterator[Finding]:
    """dataset_from_index and dataset_to_index follow from the lengths; LeRobot cuts action chunks by them."""
    at = 0
    wrong = []
    for episode in contents.episodes or ():
        if episode.from_index is not None and (episode.from_index, episode.to_index) != (at, at + episode.length):
            wrong.append((episode, at))
        at += episode.length
    if wrong:
        episode, start = wrong[0]
        yield Finding(
            rule="episode-boundaries",
            where=say.episodes([e.index for e, _ in wrong]),
            found=f"rows {episode.from_index} to {episode.to_index} for episode {episode.index}",
            expected=f"{start} to {start + episode.length}, right after the episode before",
            repair="renumber",
        )


def doubled_rows(contents: Contents) -> Iterator[Finding]:
    """A frame stored more than once (LeRobot issue 1875); LeRobot loads it without a word."""
    rows = contents.rows
    if rows is None or rows.stored == len(rows):
        return
    yield Finding(
        rule="doubled-rows",
        where="data",
        found=f"{rows.stored} rows for {len(rows)} frames"
        + (f", {rows.conflicting} of them with other numbers than the first" if rows.conflicting else ""),
        expected="one row for each frame",
        repair=None if rows.conflicting else "drop-duplicates",
    )


def row_order(contents: Contents) -> Iterator[Finding]:
    """Rows lie in the order of episodes and frames: LeRobot takes the position for the index."""
    if contents.rows is not None and not contents.rows.in_order:
        yield Finding(
            rule="row-order",
            where="data",
            found="rows out of order",
            expected="episodes and their frames in ascending order",
            repair="renumber",
        )


def frame_numbers(contents: Contents) -> Iterator[Finding]:
    """frame_index runs from 0 in each episode. (Gaps are lost frames: see `lost`.)"""
    rows = contents.rows
    if rows is None:
        return
    shifted = [e for e, s in contents.spans.items() if rows.frame[s][0] != 0 and _contiguous(rows.frame[s])]
    if shifted:
        yield Finding(
            rule="frame-numbers",
            where=say.episodes(shifted),
            found=f"frame_index from {rows.frame[rows.spans[shifted[0]]][0]} on",
            expected="0 to length-1",
            repair="renumber",
        )


def index_numbers(contents: Contents) -> Iterator[Finding]:
    """index counts all frames of the data set from 0."""
    rows = contents.rows
    if rows is None or rows.index is None:
        return
    wrong = int((rows.index != np.arange(len(rows))).sum())
    if wrong:
        yield Finding(
            rule="index-numbers",
            where="data index",
            found=f"{wrong} of {len(rows)} rows with another number",
            expected=f"0 to {len(rows) - 1} in order",
            repair="renumber",
        )


def timestamps(contents: Contents) -> Iterator[Finding]:
    """timestamp == frame_index / fps within 0.1 ms: LeRobot looks frames up in the video by it."""
    rows = contents.rows
    if contents.info is None or rows is None or rows.timestamp is None:
        return
    drift = np.abs(rows.timestamp - rows.frame / contents.info.fps)
    late = ~(drift <= TOLERANCE_SECONDS)
    if late.any():
        worst = float(np.max(drift[np.isfinite(drift)], initial=0.0))
        yield Finding(
            rule="timestamps",
            where=say.episodes(rows.episodes_where(late)),
            found=f"{int(late.sum())} of {len(rows)} rows up to {worst:.4g} s off{_true_rate(contents)}",
            expected=f"frame_index / {contents.info.fps:g} within {TOLERANCE_SECONDS:g} s",
            repair="regularise-timestamps",
        )


def _true_rate(contents: Contents) -> str:
    rows = contents.rows
    if rows is None or rows.timestamp is None:
        return ""
    spans = contents.spans.values()
    seconds = sum(float(rows.timestamp[s][-1] - rows.timestamp[s][0]) for s in spans)
    steps = sum(int(rows.frame[s][-1] - rows.frame[s][0]) for s in spans)
    return f" (mean rate {steps / seconds:.2f} Hz)" if np.isfinite(seconds) and seconds > 0 else ""


def _contiguous(frame: NDArray[np.int64]) -> bool:
    return bool((np.diff(frame) == 1).all())


def _size(span: slice) -> int:
    return int(span.stop - span.start)


RULES = (
    episode_count,
    frame_count,
    episode_length,
    unlisted_rows,
    misplaced_rows,
    episode_numbers,
    boundaries,
    doubled_rows,
    row_order,
    frame_numbers,
    index_numbers,
    timestamps,
)
