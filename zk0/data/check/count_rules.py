"""Rules about counts and numbering: how many frames and episodes, in which order, at which time."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from zk0.data.check.contents import Contents
from zk0.data.check.rule import RuleGroup, Violation
from zk0.data.check.true_rate import are_equal_rates
from zk0.data.dataset_info import INFO_PATH, TOLERANCE_SECONDS
from zk0.name_lists import join_episodes

MAX_STRETCH = 0.1
"""Largest deviation of the timestamps' mean rate from the fps at which a repair may regularize them."""

COUNT_RULES = RuleGroup[[Contents], Violation]("Counts and numbering", __name__)


@COUNT_RULES.rule("episode-count", repairs=("recount",))
def episode_count(contents: Contents) -> Iterator[Violation]:
    """`total_episodes` in meta/info.json is the number of episodes in the episode table."""
    if contents.info and contents.episodes is not None and contents.info.total_episodes != len(contents.episodes):
        yield Violation(
            where=f"{INFO_PATH} total_episodes",
            found=str(contents.info.total_episodes),
            expected=f"{len(contents.episodes)}, the episodes in the table",
        )


@COUNT_RULES.rule("frame-count", repairs=("recount",))
def frame_count(contents: Contents) -> Iterator[Violation]:
    """`total_frames` in meta/info.json is the number of frames in `data/`."""
    if contents.info and contents.rows and contents.info.total_frames != len(contents.rows):
        yield Violation(
            where=f"{INFO_PATH} total_frames",
            found=str(contents.info.total_frames),
            expected=f"{len(contents.rows)}, the frames in data",
        )


@COUNT_RULES.rule("episode-length", repairs=("recount",))
def episode_length(contents: Contents) -> Iterator[Violation]:
    """The length of each episode in the episode table is the number of its frames."""
    if contents.rows is None:
        return
    spans = contents.rows.spans
    wrong = [e for e in contents.episodes or () if e.index in spans and e.length != _size(spans[e.index])]
    if wrong:
        first = wrong[0]
        yield Violation(
            where=join_episodes([e.index for e in wrong]),
            found=f"length {first.length} in the table",
            expected=f"{_size(spans[first.index])}, the frames in data",
        )


@COUNT_RULES.rule("unlisted-rows", repairs=("drop-rows",), repair_if="every episode of the table has rows")
def unlisted_rows(contents: Contents) -> Iterator[Violation]:
    """Every row belongs to an episode of the episode table."""
    if contents.rows is None or contents.episodes is None:
        return
    unknown = sorted(set(contents.rows.spans) - {e.index for e in contents.episodes})
    empty = [e for e in contents.episodes if e.index not in contents.spans and e.data_file in contents.folder]
    if unknown:
        yield Violation(
            where="data episode_index",
            found=f"rows of {join_episodes(unknown)}",
            expected="only episodes of the table",
            repairable=not empty,  # rows without an episode and episodes without rows: the numbers cannot be trusted
        )


@COUNT_RULES.rule("misplaced-rows", repairs=("recount",), repair_if="the format is v3")
def misplaced_rows(contents: Contents) -> Iterator[Violation]:
    """The rows of an episode lie in the file that the episode table names for it."""
    named = {e.index: e.data_file for e in contents.episodes or ()}
    wrong = [
        (int(e), t.file)
        for t in contents.frame_tables
        if t.episode_index is not None
        for e in np.unique(t.episode_index)
        if named.get(int(e), t.file) != t.file
    ]
    if wrong and contents.info:
        episode, file = wrong[0]
        yield Violation(
            where=join_episodes(sorted({e for e, _ in wrong})),
            found=f"rows of episode {episode} in {file}",
            expected=named[episode]
            + (
                "" if contents.info.is_v3 else "; rename the files if their names are wrong, else correct episode_index"
            ),
            repairable=contents.info.is_v3,  # v2: either the row's number or the file's may be wrong
        )


@COUNT_RULES.rule(
    "episode-numbers",
    repairs=("renumber",),
    repair_if="no episode is listed twice or with the rows of another one",
)
def episode_numbers(contents: Contents) -> Iterator[Violation]:
    """The episode table lists episodes 0 to n-1 in order; LeRobot looks them up by position."""
    numbers = [e.index for e in contents.episodes or ()]
    if numbers != list(range(len(numbers))):
        twice, others = len(numbers) - len(set(numbers)), _with_rows_of_others(contents)
        doubt = f"; the table states the rows of other episodes for {join_episodes(others)}" if others else ""
        hint = "; correct the numbers in the table or in the rows" if others else ""
        yield Violation(
            where="episode table",
            found=f"{join_episodes(numbers)}" + (f", {twice} of them twice" if twice else "") + doubt,
            expected=f"0 to {len(numbers) - 1}, each once, in order{hint}",
            repairable=not twice and not others,
        )


def _with_rows_of_others(contents: Contents) -> list[int]:
    """Return the episodes for which the table states exactly the rows of another one: one of the numbers is wrong."""
    by_rows = {(s.start, s.stop): e for e, s in contents.spans.items()}
    stated = {e.index: by_rows.get((e.from_index, e.to_index)) for e in contents.episodes or ()}
    return sorted(e for e, other in stated.items() if other is not None and other != e)


@COUNT_RULES.rule("episode-boundaries", repairs=("renumber",))
def episode_boundaries(contents: Contents) -> Iterator[Violation]:
    """`dataset_from_index` and `dataset_to_index` follow from the lengths; LeRobot cuts action chunks by them."""
    at = 0
    wrong = []
    for episode in contents.episodes or ():
        if episode.from_index is not None and (episode.from_index, episode.to_index) != (at, at + episode.length):
            wrong.append((episode, at))
        at += episode.length
    if wrong:
        episode, start = wrong[0]
        yield Violation(
            where=join_episodes([e.index for e, _ in wrong]),
            found=f"rows {episode.from_index} to {episode.to_index} for episode {episode.index}",
            expected=f"{start} to {start + episode.length}, right after the episode before",
        )


@COUNT_RULES.rule("doubled-rows", repairs=("drop-duplicates",), repair_if="the copies are equal")
def doubled_rows(contents: Contents) -> Iterator[Violation]:
    """Every frame is stored once (LeRobot issue 1875); LeRobot loads repeated rows without a warning."""
    rows = contents.rows
    if rows is None or rows.stored == len(rows):
        return
    conflict = f", {rows.conflicting} of them with other values than the first" if rows.conflicting else ""
    yield Violation(
        where="data",
        found=f"{rows.stored} rows for {len(rows)} frames{conflict}",
        expected="one row for each frame",
        repairable=not rows.conflicting,
    )


@COUNT_RULES.rule("row-order", repairs=("renumber",))
def row_order(contents: Contents) -> Iterator[Violation]:
    """Rows are sorted by episode and frame; LeRobot takes the position of a row for its index."""
    if contents.rows is not None and not contents.rows.in_order:
        yield Violation("data", "rows out of order", "episodes and their frames in ascending order")


@COUNT_RULES.rule("frame-numbers", repairs=("renumber",))
def frame_numbers(contents: Contents) -> Iterator[Violation]:
    """`frame_index` starts at 0 in each episode. Gaps are lost frames: see frame-gaps."""
    rows = contents.rows
    if rows is None:
        return
    shifted = [e for e, s in contents.spans.items() if rows.frame[s][0] != 0 and _contiguous(rows.frame[s])]
    if shifted:
        start = rows.frame[rows.spans[shifted[0]]][0]
        yield Violation(join_episodes(shifted), f"frame_index from {start} on", "0 to length-1")


@COUNT_RULES.rule("index-numbers", repairs=("renumber",))
def index_numbers(contents: Contents) -> Iterator[Violation]:
    """`index` counts all frames of the dataset from 0."""
    rows = contents.rows
    if rows is None or rows.index is None:
        return
    wrong = int((rows.index != np.arange(len(rows))).sum())
    if wrong:
        yield Violation(
            where="data index",
            found=f"{wrong} of {len(rows)} rows with another number",
            expected=f"0 to {len(rows) - 1} in order",
        )


@COUNT_RULES.rule("frame-rate", repairs=("correct-fps",), repair_if="all videos run at the rate of the timestamps")
def frame_rate(contents: Contents) -> Iterator[Violation]:
    """`fps` in meta/info.json is the rate of the timestamps; another one would play the motion faster or slower."""
    info, clock = contents.info, contents.clock
    if info is None or clock is None or are_equal_rates([clock], info.fps) or _videos_confirm(contents):
        return
    agrees = contents.fps == clock
    yield Violation(
        where=f"{INFO_PATH} fps",
        found=f"{info.fps:g}, while the timestamps{' and the videos' if agrees else ''} run at {clock:g}",
        expected=f"one rate; if {clock:g} is right, correct fps, else the timestamps" if not agrees else f"{clock:g}",
        repairable=agrees,
    )


def _videos_confirm(contents: Contents) -> bool:
    """Return whether there are videos, and all run at the fps of meta/info.json."""
    rates = [v.fps for v in contents.videos if v.fps is not None]
    return contents.info is not None and bool(rates) and are_equal_rates(rates, contents.info.fps)


@COUNT_RULES.rule(
    "timestamps", repairs=("regularize-timestamps",), repair_if="their mean rate is within 10 % of the fps"
)
def timestamps(contents: Contents) -> Iterator[Violation]:
    """timestamp = frame_index / fps within 0.1 ms; LeRobot finds the video frame by it."""
    rows, fps = contents.rows, contents.fps if contents.info else 0.0
    if not fps or rows is None or rows.timestamp is None:
        return
    drift = np.abs(rows.timestamp - rows.frame / fps)
    late = ~(drift <= TOLERANCE_SECONDS)
    if late.any() and (contents.clock is None or _videos_confirm(contents)):  # frame-rate reports a regular clock
        worst = float(np.max(drift[np.isfinite(drift)], initial=0.0))
        rate = _mean_rate(contents)
        is_near = rate is None or abs(rate - fps) <= MAX_STRETCH * fps
        yield Violation(
            where=join_episodes(rows.episodes_where(late)),
            found=f"{int(late.sum())} of {len(rows)} rows up to {worst:.4g} s off"
            + (f" (mean rate {rate:.2f} Hz)" if rate else ""),
            expected=f"frame_index / {fps:g} within {TOLERANCE_SECONDS:g} s"
            + ("" if is_near else _rate_hint(contents)),
            repairable=is_near,
        )


def _rate_hint(contents: Contents) -> str:
    """Return what to do about timestamps of quite another rate, which a repair would stretch with the motion."""
    stated = "fps and videos" if _videos_confirm(contents) else "fps"
    return (
        f"; either {stated} or the timestamps are wrong: if {contents.fps:g} is right, write timestamp = frame_index / "
        f"fps, else {stated} at the rate of the timestamps"
    )


def _mean_rate(contents: Contents) -> float | None:
    """Return the mean frames per second of the timestamps; None if they do not ascend."""
    rows = contents.rows
    assert rows is not None
    assert rows.timestamp is not None
    spans = contents.spans.values()
    seconds = sum(float(rows.timestamp[s][-1] - rows.timestamp[s][0]) for s in spans)
    steps = sum(int(rows.frame[s][-1] - rows.frame[s][0]) for s in spans)
    return steps / seconds if np.isfinite(seconds) and seconds > 0 else None


def _contiguous(frame: NDArray[np.int64]) -> bool:
    return bool((np.diff(frame) == 1).all())


def _size(span: slice) -> int:
    return int(span.stop - span.start)
