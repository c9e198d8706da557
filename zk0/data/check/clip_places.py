"""Where the frames of each clip lie in its video, also where the episode table is wrong and the files prove it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from zk0.data.dataset_folder import BrokenFile, DatasetFolder
from zk0.data.dataset_info import TOLERANCE_SECONDS
from zk0.data.episode_table import EpisodeEntry, VideoClip
from zk0.data.video_file import VideoFile, probe_video

MAX_SNAP_FRAMES = 0.45
"""Largest distance of a clip's start from a frame of its video, in frames, that leaves no doubt which one is meant."""
MAX_RETIMED_RATE_ERROR = 0.05
"""Largest deviation of a video's mean rate from the dataset's for which its frames get new times."""


@dataclass(frozen=True)
class EpisodeClip:
    """The clip of one episode of one camera, and the number of its frames."""

    episode: int
    clip: VideoClip
    frames: int

    def fits(self, video: VideoFile, fps: float) -> bool:
        """Return whether every frame has a video frame of its own within the tolerance."""
        return self.max_frame_offset(video, fps) < TOLERANCE_SECONDS

    def max_frame_offset(self, video: VideoFile, fps: float) -> float:
        """Return the largest time in seconds between a frame and its nearest video frame.

        It is infinite if two frames have the same nearest video frame: then the rates differ.
        """
        if not len(video.seconds) or not self.frames:
            return float("inf")
        wanted = self._frame_times(fps)
        nearest = _nearest(video.seconds, wanted)
        if (np.diff(nearest) <= 0).any():
            return float("inf")
        return float(np.abs(wanted - video.seconds[nearest]).max())

    def positions(self, video: VideoFile, fps: float, *, retimed: bool) -> NDArray[np.int64] | None:
        """Return which frames of the video are those of the clip; None if it has not all of them.

        Args:
            video: the clip's file.
            fps: frames per second.
            retimed: whether the frame times of the video do not count, but the order of its frames.
        """
        if retimed:
            return round(self.clip.start_seconds * fps) + np.arange(self.frames)
        return _nearest(video.seconds, self._frame_times(fps)) if self.fits(video, fps) else None

    def missing_frames(self, video: VideoFile, fps: float) -> int:
        """Return how many frames before the video's last one have no video frame within the tolerance."""
        wanted = self._frame_times(fps)
        wanted = wanted[wanted < video.seconds[-1:].max(initial=-1.0)]
        if not len(wanted):
            return 0
        return int((np.abs(wanted - video.seconds[_nearest(video.seconds, wanted)]) >= TOLERANCE_SECONDS).sum())

    def is_stated_short(self, fps: float) -> bool:
        """Return whether the episode table itself states an end before all frames."""
        start, end = self.clip.start_seconds, self.clip.end_seconds
        return start < end < start + (self.frames - 0.5) / fps

    def stated_frames(self, fps: float) -> int:
        """Return the number of frames between the start and the end that the episode table states."""
        return round((self.clip.end_seconds - self.clip.start_seconds) * fps)

    def _frame_times(self, fps: float) -> NDArray[np.float64]:
        return self.clip.start_seconds + np.arange(self.frames) / fps


@dataclass(frozen=True)
class ClipPlaces:
    """The clips of all episodes, as the files prove them."""

    clips: Mapping[tuple[int, str], VideoClip]
    """(episode, feature key of the camera) -> clip."""
    retimed: frozenset[str]
    """Videos with one frame for every row, in order, whose frame times are off: a copy gives them new ones."""


def place_clips(
    episodes: Sequence[EpisodeEntry],
    lengths: Mapping[int, int],
    lost: Mapping[int, int],
    fps: float,
    videos: Mapping[str, VideoFile],
    moved: Mapping[str, str],
) -> ClipPlaces:
    """Return every clip of the episode table, corrected where that is certain.

    A start is corrected if the video has exactly one frame for each row and the clips follow each other (offsets that
    count on from another file), or if it lies less than half a frame beside a frame of the video.

    Args:
        episodes: the episode table.
        lengths: episode -> its frames.
        lost: episode -> frames of its clip before the first row.
        fps: frames per second.
        videos: path -> readable video.
        moved: path that the table names -> path where the video lies.
    """
    by_file: dict[tuple[str, str], list[EpisodeClip]] = defaultdict(list)
    for e in episodes:
        for key, clip in e.clips.items():
            file = moved.get(clip.file, clip.file)
            start = clip.start_seconds + lost[e.index] / fps
            placed = replace(clip, file=file, start_seconds=start)
            by_file[key, file].append(EpisodeClip(e.index, placed, lengths[e.index]))
    clips: dict[tuple[int, str], VideoClip] = {}
    retimed: set[str] = set()
    for (key, file), entries in by_file.items():
        settled, new_times = _settle(videos[file], entries, fps) if file in videos else (entries, False)
        clips |= {(c.episode, key): c.clip for c in settled}
        retimed |= {file} if new_times else set()
    return ClipPlaces(clips, frozenset(retimed))


def moved_videos(
    folder: DatasetFolder,
    episodes: Sequence[EpisodeEntry],
    lengths: Mapping[int, int],
    videos: Mapping[str, VideoFile],
) -> dict[str, str]:
    """Return the path that the table names -> the path where such a video certainly lies, if that is another one.

    A missing one lies below another first folder (video/ instead of videos/), or it is the camera's only video, and one
    lies there under another name. Otherwise the numbers of frames tell, also of videos under each other's names: each
    video in question has as many frames as the episodes of one name, and no other video or name has that number.

    Args:
        folder: the dataset's.
        episodes: the episode table.
        lengths: episode -> its rows; of the others, the episode table's length counts.
        videos: path -> readable video, of those that the table names.
    """
    by_tail: dict[str, list[str]] = defaultdict(list)
    for file in folder.sizes:
        if file.endswith(".mp4"):
            by_tail[file.partition("/")[2]].append(file)
    moved: dict[str, str] = {}
    for key in sorted({k for e in episodes for k in e.clips}):
        rows = _rows_by_video(episodes, lengths, key)
        missing = {f for f in rows if f not in folder}
        same_tail = {f: found[0] for f in missing if len(found := by_tail.get(f.partition("/")[2], [])) == 1}
        unnamed = set(unnamed_videos(folder, episodes, key)) - set(same_tail.values())
        moved |= same_tail
        if len(rows) == len(missing - same_tail.keys()) == len(unnamed) == 1:
            moved |= {missing.pop(): unnamed.pop()}
            continue
        there = {f: videos[f] for f in rows if f in videos} | _readable(folder, unnamed if missing else set())
        moved |= _by_number_of_frames({f: n for f, n in rows.items() if f not in same_tail}, there)
    return moved


def exchanged_videos(rows: Mapping[str, int], frames: Mapping[str, int]) -> tuple[str, ...]:
    """Return the videos of a camera that may lie under each other's names: one has the frames that another one lacks.

    Args:
        rows: path -> frames of its episodes.
        frames: path -> frames in it.

    >>> exchanged_videos({"a": 65, "b": 47, "c": 70, "d": 30}, {"a": 47, "b": 65, "c": 70, "d": 29})
    ('a', 'b')
    """
    wrong = [f for f, n in frames.items() if n != rows[f]]
    pairs = [(a, b) for a in wrong for b in wrong if frames[a] < rows[a] == frames[b]]
    return tuple(sorted({f for pair in pairs for f in pair}))


def unnamed_videos(folder: DatasetFolder, episodes: Sequence[EpisodeEntry], key: str) -> list[str]:
    """Return the videos of a camera that no episode names."""
    named = {e.clips[key].file for e in episodes if key in e.clips}
    return [f for f in folder.sizes if f.endswith(".mp4") and key in f.split("/") and f not in named]


def _rows_by_video(episodes: Sequence[EpisodeEntry], lengths: Mapping[int, int], key: str) -> dict[str, int]:
    """Return path that the table names -> rows of its episodes."""
    rows: dict[str, int] = defaultdict(int)
    for e in episodes:
        if key in e.clips:
            rows[e.clips[key].file] += lengths.get(e.index, e.length)
    return dict(rows)


def _readable(folder: DatasetFolder, files: Iterable[str]) -> dict[str, VideoFile]:
    found = {}
    for file in files:
        with suppress(BrokenFile):
            found[file] = probe_video(folder, file)
    return found


def _by_number_of_frames(rows: Mapping[str, int], videos: Mapping[str, VideoFile]) -> dict[str, str]:
    """Return named path -> the path of the only video with its number of frames, if that settles all names in question.

    A video whose number no name needs, and whose name no other video fits, is faulty and keeps its name. Where two
    videos or two names have one number, nothing tells which belongs to which.
    """
    frames = {f: len(v.seconds) for f, v in videos.items()}
    names = {f: n for f, n in rows.items() if frames.get(f) != n}
    free = {f: n for f, n in frames.items() if rows.get(f) != n}
    faulty = {f for f, n in names.items() if f in free and n not in free.values() and free[f] not in names.values()}
    wanted = {n: f for f, n in names.items() if f not in faulty}
    offered = {n: f for f, n in free.items() if f not in faulty}
    is_unique = len(wanted) == len(names) - len(faulty) and len(offered) == len(free) - len(faulty)
    settled = {n for f, n in rows.items() if f not in names}
    if not is_unique or wanted.keys() != offered.keys() or wanted.keys() & settled:
        return {}
    return {name: offered[n] for n, name in wanted.items()}


def _nearest(seconds: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.int64]:
    right = np.minimum(np.searchsorted(seconds, wanted), len(seconds) - 1)
    left = np.maximum(right - 1, 0)
    chosen: NDArray[np.int64] = np.where(np.abs(wanted - seconds[left]) < np.abs(wanted - seconds[right]), left, right)
    return chosen


def _settle(video: VideoFile, entries: list[EpisodeClip], fps: float) -> tuple[list[EpisodeClip], bool]:
    """Return the clips of one video with corrected starts, and whether the video needs new frame times for them."""
    if all(c.fits(video, fps) for c in entries):
        return entries, False
    ordered = sorted(entries, key=lambda c: (c.clip.start_seconds, c.episode))
    if len(video.seconds) == sum(c.frames for c in ordered) and _follow_each_other(ordered, fps):
        starts = np.cumsum([0, *(c.frames for c in ordered)])[:-1]
        counted = [_starting(c, float(video.seconds[s]), fps) for c, s in zip(ordered, starts, strict=True)]
        if all(c.fits(video, fps) for c in counted):
            return counted, False
        if video.mean_fps is not None and abs(video.mean_fps - fps) <= MAX_RETIMED_RATE_ERROR * fps:
            return [_starting(c, float(s) / fps, fps) for c, s in zip(ordered, starts, strict=True)], True
    return [_snapped(video, c, fps) for c in entries], False


def _follow_each_other(ordered: list[EpisodeClip], fps: float) -> bool:
    gaps = [b.clip.start_seconds - a.clip.start_seconds - a.frames / fps for a, b in pairwise(ordered)]
    return all(abs(gap) <= 0.5 / fps for gap in gaps)


def _snapped(video: VideoFile, entry: EpisodeClip, fps: float) -> EpisodeClip:
    if not len(video.seconds) or entry.fits(video, fps):
        return entry
    start = float(video.seconds[_nearest(video.seconds, np.asarray([entry.clip.start_seconds]))[0]])
    moved = _starting(entry, start, fps)
    is_near = abs(start - entry.clip.start_seconds) <= MAX_SNAP_FRAMES / fps
    return moved if is_near and moved.fits(video, fps) else entry


def _starting(entry: EpisodeClip, start: float, fps: float) -> EpisodeClip:
    if abs(start - entry.clip.start_seconds) < TOLERANCE_SECONDS:
        return entry
    return replace(entry, clip=VideoClip(entry.clip.file, start, start + entry.frames / fps))
