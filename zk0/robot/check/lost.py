"""Episodes that cannot be kept: files, frames or numbers of theirs are gone."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from zk0.records import Finding
from zk0.robot.check import say
from zk0.robot.check.contents import Contents
from zk0.robot.check.counts import TOLERANCE_SECONDS
from zk0.robot.episodes import Clip
from zk0.robot.video_file import Decoded, VideoFile


class Loss(NamedTuple):
    """Why some episodes are lost."""

    rule: str
    where: str
    found: str
    expected: str
    episodes: tuple[int, ...]


class Seen(NamedTuple):
    """What decoding everything showed."""

    videos: Mapping[str, Decoded]
    """Those that decode, by file."""
    broken_videos: Mapping[str, str]
    """File -> why it does not decode."""
    broken_pictures: Mapping[int, str]
    """Episode -> its first stored picture that does not decode."""


NOTHING_SEEN = Seen({}, {}, {})


def losses(contents: Contents, seen: Seen = NOTHING_SEEN) -> tuple[Loss, ...]:
    """Everything that costs an episode."""
    return (
        *_missing_rows(contents),
        *_gaps(contents),
        *_not_finite(contents),
        *_missing_videos(contents),
        *_wrong_frames(contents),
        *_undecodable(contents, seen),
    )


def lost_episodes(contents: Contents, seen: Seen = NOTHING_SEEN) -> frozenset[int]:
    """The episodes that a repair must drop."""
    unreadable = {f.where for f in contents.broken if f.rule == "unreadable-video"}
    gone = {e.index for e in contents.episodes or () if any(c.file in unreadable for c in e.clips.values())}
    return frozenset(gone | {e for loss in losses(contents, seen) for e in loss.episodes})


def lost_findings(contents: Contents, seen: Seen = NOTHING_SEEN) -> Iterator[Finding]:
    """One finding for each loss; dropping the episodes repairs it, if any remain."""
    remain = len(contents.episodes or ()) > len(lost_episodes(contents, seen))
    for loss in losses(contents, seen):
        yield Finding(
            rule=loss.rule,
            where=f"{loss.where} ({say.episodes(loss.episodes)})" if loss.episodes else loss.where,
            found=loss.found,
            expected=loss.expected,
            repair="drop-episodes" if remain else None,
        )


def _missing_rows(contents: Contents) -> Iterator[Loss]:
    entries = contents.episodes or ()
    absent = sorted({e.data_file for e in entries if e.data_file not in contents.folder})
    unreadable = {f.where.split()[0] for f in contents.broken if f.rule == "unreadable-data"}
    if absent:
        gone = tuple(e.index for e in entries if e.data_file in absent)
        yield Loss("missing-data", say.some(absent, 3), f"{len(absent)} missing files", "every named file", gone)
    if broken := tuple(e.index for e in entries if e.data_file in unreadable):
        yield Loss("missing-rows", "data", "rows in a file that cannot be read", "readable rows", broken)
    if contents.rows is None:
        return
    spans = contents.rows.spans
    readable = [e for e in entries if e.data_file not in absent and e.data_file not in unreadable]
    if none := tuple(e.index for e in readable if e.index not in spans):
        yield Loss("missing-rows", "data", "no row", "the rows of every episode in the table", none)


def _gaps(contents: Contents) -> Iterator[Loss]:
    rows = contents.rows
    if rows is None:
        return
    gaps = tuple(e for e, s in contents.spans.items() if (np.diff(rows.frame[s]) != 1).any())
    if gaps:
        frame = rows.frame[rows.spans[gaps[0]]]
        at = int(np.flatnonzero(np.diff(frame) != 1)[0])
        yield Loss(
            "frame-gaps",
            "data frame_index",
            f"frame {frame[at + 1]} right after {frame[at]} in episode {gaps[0]}",
            "every frame from 0 to length-1",
            gaps,
        )


def _not_finite(contents: Contents) -> Iterator[Loss]:
    for name in ("state", "action"):
        values = getattr(contents.rows, name, None)
        if contents.rows is None or values is None:
            continue
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            yield Loss(
                "not-finite",
                f"data {name}",
                f"{int(bad.sum())} rows with a value that is NaN, infinite or empty",
                "finite numbers",
                contents.rows.episodes_where(bad),
            )


def _missing_videos(contents: Contents) -> Iterator[Loss]:
    for key in contents.info.video_keys if contents.info else ():
        clips = [(e.index, e.clips[key].file) for e in contents.episodes or ()]
        absent = sorted({file for _, file in clips if file not in contents.folder})
        if absent:
            gone = tuple(index for index, file in clips if file in absent)
            expected = f"a video of {key} for every episode"
            yield Loss("missing-video", say.some(absent, 3), f"{len(absent)} missing files", expected, gone)


def _wrong_frames(contents: Contents) -> Iterator[Loss]:
    rows, info = contents.rows, contents.info
    if rows is None or info is None:
        return
    for key in info.video_keys:
        worst: list[tuple[float, int]] = []
        for episode in contents.episodes or ():
            video = contents.video_by_file.get(episode.clips[key].file)
            span = rows.spans.get(episode.index)
            if video is None or span is None:
                continue
            off = farthest(video, episode.clips[key], span.stop - span.start, info.fps)
            if off >= TOLERANCE_SECONDS:
                worst.append((off, episode.index))
        if worst:
            off, index = max(worst)
            yield Loss(
                "video-frames",
                key,
                (f"a frame {off:.4g} s from the nearest picture" if off < float("inf") else "frames without a picture")
                + f" (episode {index})",
                f"a picture within {TOLERANCE_SECONDS:g} s of every frame",
                tuple(i for _, i in worst),
            )


def farthest(video: VideoFile, clip: Clip, frames: int, fps: float) -> float:
    """Seconds between a frame of the clip and its nearest picture, at worst.

    Infinite if two frames share a picture: then the rates differ.
    """
    if not len(video.seconds) or not frames:
        return float("inf")
    wanted = clip.start_seconds + np.arange(frames) / fps
    last = len(video.seconds) - 1
    right = np.minimum(np.searchsorted(video.seconds, wanted), last)
    left = np.maximum(right - 1, 0)
    nearest = np.where(np.abs(wanted - video.seconds[left]) < np.abs(wanted - video.seconds[right]), left, right)
    if (np.diff(nearest) <= 0).any():
        return float("inf")
    return float(np.abs(wanted - video.seconds[nearest]).max())


def _undecodable(contents: Contents, seen: Seen) -> Iterator[Loss]:
    for file, why in seen.broken_videos.items():
        gone = tuple(e.index for e in contents.episodes or () if any(c.file == file for c in e.clips.values()))
        yield Loss("undecodable-video", file, why, "frames that all decode", gone)
    if seen.broken_pictures:
        first = next(iter(seen.broken_pictures.values()))
        yield Loss("undecodable-picture", "data", first, "pictures of the declared size", tuple(seen.broken_pictures))
