"""Rules whose violation costs an episode: its files, frames or values are gone, and a repair must drop it."""

from collections.abc import Iterator, Mapping, Set
from dataclasses import replace

import numpy as np

from zk0.data.check.camera_rules import short_clips
from zk0.data.check.clip_places import EpisodeClip, exchanged_videos, unnamed_videos
from zk0.data.check.contents import Contents
from zk0.data.check.observed_frames import NOT_OBSERVED, ObservedFrames
from zk0.data.check.reading_rules import UNREADABLE_DATA, UNREADABLE_VIDEO
from zk0.data.check.rule import RuleGroup, Violation
from zk0.data.dataset_info import TOLERANCE_SECONDS
from zk0.data.video_file import VideoFile
from zk0.name_lists import join_episodes, join_names
from zk0.records import Finding


class EpisodeLoss(Violation):
    """A violation that costs the episodes that it concerns."""


_VideoClips = list[tuple[VideoFile, list[EpisodeClip]]]
"""Videos of one camera, and the clips in each."""

LOST_EPISODE_RULES = RuleGroup[[Contents, ObservedFrames], EpisodeLoss]("Lost episodes", __name__)
DROP_EPISODES = ("drop-episodes",)
IF_ONE_REMAINS = "an episode remains"
COPY_AGAIN = "if the dataset was copied or downloaded, do it again"


def lost_episodes(contents: Contents, observed: ObservedFrames = NOT_OBSERVED) -> frozenset[int]:
    """Return the episodes that a repair must drop."""
    unreadable = {f.where for f in contents.unreadable if f.rule == UNREADABLE_VIDEO.id}
    gone = {e.index for e in contents.episodes or () if contents.videos_of_episode(e) & unreadable}
    return frozenset(gone.union(*(loss.episodes for _, loss in LOST_EPISODE_RULES.violations(contents, observed))))


def lost_episode_findings(contents: Contents, observed: ObservedFrames = NOT_OBSERVED) -> Iterator[Finding]:
    """Yield a finding for each loss; dropping the episodes repairs it if any episode remains."""
    remain = len(contents.episodes or ()) > len(lost_episodes(contents, observed))
    for rule, loss in LOST_EPISODE_RULES.violations(contents, observed):
        where = f"{loss.where} ({join_episodes(loss.episodes)})" if loss.episodes else loss.where
        yield rule.finding(replace(loss, where=where, repairable=remain and loss.repairable))


@LOST_EPISODE_RULES.rule("missing-data", repairs=DROP_EPISODES, repair_if=IF_ONE_REMAINS)
def missing_data(contents: Contents, observed: ObservedFrames) -> Iterator[EpisodeLoss]:
    """Every parquet file that the episode table names is there."""
    if absent := _absent_data_files(contents):
        found = f"{len(absent)} missing files"
        held = contents.rows.spans if contents.rows else {}
        gone = tuple(e.index for e in contents.episodes or () if e.data_file in absent and e.index not in held)
        expected = f"every named file; {COPY_AGAIN}"
        yield EpisodeLoss(join_names(sorted(absent), 3), found, expected, episodes=gone)


@LOST_EPISODE_RULES.rule("missing-rows", repairs=DROP_EPISODES, repair_if=IF_ONE_REMAINS)
def missing_rows(contents: Contents, observed: ObservedFrames) -> Iterator[EpisodeLoss]:
    """Every episode of the episode table has readable rows."""
    entries = contents.episodes or ()
    unreadable = {f.where.split()[0] for f in contents.unreadable if f.rule == UNREADABLE_DATA.id}
    if broken := tuple(e.index for e in entries if e.data_file in unreadable):
        yield EpisodeLoss("data", "rows in a file that cannot be read", "readable rows", episodes=broken)
    if contents.rows is None:
        return
    spans, absent = contents.rows.spans, _absent_data_files(contents)
    readable = [e for e in entries if e.data_file not in absent and e.data_file not in unreadable]
    if none := tuple(e.index for e in readable if e.index not in spans):
        yield EpisodeLoss("data", "no row", "the rows of every episode in the table", episodes=none)


@LOST_EPISODE_RULES.rule("frame-gaps", repairs=DROP_EPISODES, repair_if=IF_ONE_REMAINS)
def frame_gaps(contents: Contents, observed: ObservedFrames) -> Iterator[EpisodeLoss]:
    """No frame is missing between the first and the last frame of an episode."""
    rows = contents.rows
    if rows is None:
        return
    gaps = tuple(e for e, s in contents.spans.items() if (np.diff(rows.frame[s]) != 1).any())
    if gaps:
        frame = rows.frame[rows.spans[gaps[0]]]
        at = int(np.flatnonzero(np.diff(frame) != 1)[0])
        yield EpisodeLoss(
            where="data frame_index",
            found=f"frame {frame[at + 1]} right after {frame[at]} in episode {gaps[0]}",
            expected="every frame from 0 to length-1",
            episodes=gaps,
        )


@LOST_EPISODE_RULES.rule("not-finite", repairs=DROP_EPISODES, repair_if=IF_ONE_REMAINS)
def not_finite(contents: Contents, observed: ObservedFrames) -> Iterator[EpisodeLoss]:
    """States and actions are finite numbers: no NaN, no infinity, no empty value."""
    for name in ("state", "action"):
        values = getattr(contents.rows, name, None)
        if contents.rows is None or values is None:
            continue
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            yield EpisodeLoss(
                where=f"data {name}",
                found=f"{int(bad.sum())} rows with a value that is NaN, infinite or empty",
                expected="finite numbers",
                episodes=contents.rows.episodes_where(bad),
            )


@LOST_EPISODE_RULES.rule(
    "missing-video",
    repairs=DROP_EPISODES,
    repair_if=f"{IF_ONE_REMAINS} and every video of the camera is named",
)
def missing_video(contents: Contents, observed: ObservedFrames) -> Iterator[EpisodeLoss]:
    """Every video that the episode table names is there.

    Where a video that no episode names lies beside a missing one and nothing proves that it is this one, the names of
    the others are in doubt, too.
    """
    for key in contents.info.video_keys if contents.info else ():
        if key in contents.absent_cameras:
            continue  # camera-without-video reports it
        absent = {file: clips for file, clips in contents.clips_by_file(key).items() if file not in contents.folder}
        if absent:
            gone = tuple(sorted(c.episode for clips in absent.values() for c in clips))
            found, expected = f"{len(absent)} missing files", f"a video of {key} for every episode"
            if unnamed := unnamed_videos(contents.folder, contents.episodes or (), key):
                found += f", and no episode names {join_names(unnamed, 3)}"
                expected += "; rename the video that belongs to these episodes, or remove it if it belongs to none"
            else:
                expected += f"; {COPY_AGAIN}"
            where = join_names(sorted(absent), 3)
            yield EpisodeLoss(where, found, expected, repairable=not unnamed, episodes=gone)


@LOST_EPISODE_RULES.rule("video-frames", repairs=DROP_EPISODES, repair_if=IF_ONE_REMAINS)
def video_frames(contents: Contents, observed: ObservedFrames) -> Iterator[EpisodeLoss]:
    """Every frame has a video frame of its own within 0.1 ms.

    If a video has fewer frames than rows and nothing proves where they are missing, every episode in it is suspect:
    after a lost frame, the later frames of such a video belong to other rows.
    """
    for key in contents.info.video_keys if contents.info else ():
        short = short_clips(contents, key)
        if short:
            found = "a clip that ends before all rows have a frame"
            yield EpisodeLoss(key, found, "a frame for every row", episodes=tuple(sorted(short)))
        clips_by_file = {f: _with_rows(clips, contents) for f, clips in contents.clips_by_file(key).items()}
        exchanged = _exchanged(contents, key, clips_by_file, short)
        if exchanged:
            yield EpisodeLoss(
                where=f"{key} in {join_names(exchanged, 3)}",
                found="videos of which one has as many frames as another one lacks, so their names may be exchanged",
                expected="every video under its own name; rename them, or remove those that are not whole",
                repairable=False,
                episodes=tuple(c.episode for f in exchanged for c in clips_by_file[f]),
            )
        videos = [(v, clips_by_file[f]) for f, v in contents.videos_of(key).items() if f not in exchanged]
        uncertain = {v.file for v, clips in videos if _is_uncertain(v, clips, short, contents.fps)}
        yield from _uncertain_loss(key, [(v, clips) for v, clips in videos if v.file in uncertain], short)
        whole = [(v, [c for c in clips if c.episode not in short]) for v, clips in videos if v.file not in uncertain]
        yield from _misfits(key, whole, contents)


def _exchanged(
    contents: Contents, key: str, clips_by_file: Mapping[str, list[EpisodeClip]], short: Set[int]
) -> tuple[str, ...]:
    """Return the videos that may be exchanged; one with the frames that the episode table states is in no doubt."""
    stated = {e.index: e.length for e in contents.episodes or ()}
    rows, frames = dict[str, int](), dict[str, int]()
    for file, video in contents.videos_of(key).items():
        clips = clips_by_file[file]
        needed = sum(c.stated_frames(contents.fps) if c.episode in short else c.frames for c in clips)
        frames[file] = len(video.seconds)
        rows[file] = frames[file] if sum(stated[c.episode] for c in clips) == frames[file] else needed
    return exchanged_videos(rows, frames)


def _uncertain_loss(key: str, videos: _VideoClips, short: Set[int]) -> Iterator[EpisodeLoss]:
    if videos:
        video, clips = videos[0]
        yield EpisodeLoss(
            where=f"{key} in {join_names([v.file for v, _ in videos], 3)}",
            found=f"{len(video.seconds)} frames for {sum(c.frames for c in clips)} rows; "
            "no timestamp shows where frames were lost, so later frames may belong to other rows",
            expected="a frame for every row; record these episodes again, or convert their source again",
            episodes=tuple(c.episode for _, clips in videos for c in clips if c.episode not in short),
        )


def _with_rows(clips: list[EpisodeClip], contents: Contents) -> list[EpisodeClip]:
    """Return the clips of the episodes that have rows, with as many frames as there are rows."""
    spans = contents.rows.spans if contents.rows else {}
    return [replace(c, frames=(s := spans[c.episode]).stop - s.start) for c in clips if c.episode in spans]


def _is_uncertain(video: VideoFile, clips: list[EpisodeClip], short: Set[int], fps: float) -> bool:
    """Return whether a video has fewer frames than stated without gaps in its times that prove where they lack.

    Frames that lack after the video's last one prove nothing: frames that were lost earlier shift all later ones.

    Args:
        video: the video.
        clips: those of its episodes.
        short: the episodes whose clips the episode table itself states to be shorter than their rows.
        fps: frames per second.
    """
    stated = sum(c.stated_frames(fps) if c.episode in short else c.frames for c in clips)
    if len(clips) < 2 or len(video.seconds) >= stated:
        return False
    missing = sum(c.missing_frames(video, fps) for c in clips if c.episode not in short)
    has_gap = float(np.diff(video.seconds).max(initial=0.0)) > 1.5 / fps
    return not (has_gap and missing == stated - len(video.seconds))


def _misfits(key: str, videos: _VideoClips, contents: Contents) -> Iterator[EpisodeLoss]:
    timed = [(v, clips) for v, clips in videos if v.file not in contents.places.retimed]
    offsets = [(c.max_frame_offset(v, contents.fps), c.episode) for v, clips in timed for c in clips]
    worst = [(off, i) for off, i in offsets if off >= TOLERANCE_SECONDS]
    if worst:
        off, index = max(worst)
        offset = f"a frame {off:.4g} s from the nearest video frame"
        yield EpisodeLoss(
            where=key,
            found=f"{offset if off < float('inf') else 'frames without a video frame'} (episode {index})",
            expected=f"a video frame within {TOLERANCE_SECONDS:g} s of every frame",
            episodes=tuple(i for _, i in worst),
        )


@LOST_EPISODE_RULES.rule("undecodable-video", repairs=DROP_EPISODES, repair_if=IF_ONE_REMAINS)
def undecodable_video(contents: Contents, observed: ObservedFrames) -> Iterator[EpisodeLoss]:
    """Every frame of every video decodes. Only the full check decodes videos."""
    for file, why in observed.broken_videos.items():
        gone = tuple(e.index for e in contents.episodes or () if file in contents.videos_of_episode(e))
        yield EpisodeLoss(file, why, "frames that all decode", episodes=gone)


@LOST_EPISODE_RULES.rule("undecodable-picture", repairs=DROP_EPISODES, repair_if=IF_ONE_REMAINS)
def undecodable_picture(contents: Contents, observed: ObservedFrames) -> Iterator[EpisodeLoss]:
    """Every image that is stored in parquet decodes to the declared size. Only the full check decodes images."""
    if observed.broken_images:
        first, episodes = next(iter(observed.broken_images.values())), tuple(observed.broken_images)
        yield EpisodeLoss("data", first, "images of the declared size", episodes=episodes)


def _absent_data_files(contents: Contents) -> set[str]:
    """Return the missing files of episodes whose rows no other file holds; misplaced-rows reports the others."""
    found = contents.rows.spans if contents.rows else {}
    entries = contents.episodes or ()
    return {e.data_file for e in entries if e.data_file not in contents.folder and e.index not in found}
