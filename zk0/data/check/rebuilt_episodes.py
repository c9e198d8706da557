"""The episode table of an interrupted recording, built again from the rows and the videos."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from zk0.data.dataset_folder import BrokenFile, DatasetFolder
from zk0.data.dataset_info import DatasetInfo
from zk0.data.episode_table import EpisodeEntry, VideoClip
from zk0.data.frame_table import FrameTable
from zk0.data.video_file import VideoFile, probe_video

Positions = NDArray[np.int64]


def rebuild_episodes(
    folder: DatasetFolder, info: DatasetInfo, tables: Sequence[FrameTable], tasks: Mapping[int, str]
) -> tuple[EpisodeEntry, ...] | None:
    """Return the entries of all episodes that have rows, if rows and videos leave no doubt about them; else None.

    LeRobot writes the rows and the clips of a recording in the order of the episodes. So the clips are certain if each
    camera has as many video frames as there are rows, and every video ends where an episode ends.

    Args:
        folder: the dataset's.
        info: its meta/info.json, version 3.
        tables: all files below data/, in order.
        tasks: task_index -> text.
    """
    rows = _rows_by_episode(tables)
    if rows is None:
        return None
    lengths = {e: len(positions) for e, (_, positions) in rows.items()}
    clips: dict[str, Mapping[int, VideoClip]] = {}
    for key in info.video_keys:
        found = _clips(folder, key, lengths, info.fps)
        if found is None:
            return None
        clips[key] = found
    entries, start = [], 0
    for episode, (table, positions) in rows.items():
        numbers = [] if table.task_index is None else np.unique(table.task_index[positions]).tolist()
        entries.append(
            EpisodeEntry(
                index=episode,
                length=lengths[episode],
                tasks=tuple(tasks[t] for t in numbers if t in tasks),
                data_file=table.file,
                clips={key: of_camera[episode] for key, of_camera in clips.items()},
                from_index=start,
                to_index=start + lengths[episode],
            )
        )
        start += lengths[episode]
    return tuple(entries)


def _rows_by_episode(tables: Sequence[FrameTable]) -> dict[int, tuple[FrameTable, Positions]] | None:
    """Return episode -> its file and its rows there; None unless the episodes are whole and in order."""
    found: dict[int, tuple[FrameTable, Positions]] = {}
    for table in tables:
        if table.episode_index is None or table.frame_index is None:
            return None
        for episode in dict.fromkeys(table.episode_index.tolist()):
            positions = np.flatnonzero(table.episode_index == episode)
            if episode != len(found) or not np.array_equal(table.frame_index[positions], np.arange(len(positions))):
                return None
            found[episode] = (table, positions)
    return found or None


def _clips(folder: DatasetFolder, key: str, lengths: Mapping[int, int], fps: float) -> dict[int, VideoClip] | None:
    """Return episode -> clip of one camera; None if its videos do not hold exactly the frames of whole episodes."""
    try:
        videos = [probe_video(folder, file) for file in folder.files_under(f"videos/{key}", ".mp4")]
    except BrokenFile:
        return None
    if sum(len(v.seconds) for v in videos) != sum(lengths.values()):
        return None
    clips: dict[int, VideoClip] = {}
    waiting = list(lengths.items())
    for video in videos:
        filled = _fill(video, waiting, fps)
        if filled is None:
            return None
        clips |= filled
        waiting = waiting[len(filled) :]
    return clips


def _fill(video: VideoFile, waiting: Sequence[tuple[int, int]], fps: float) -> dict[int, VideoClip] | None:
    """Return the clips of the next episodes that fill a video; None if its end is not the end of an episode."""
    clips: dict[int, VideoClip] = {}
    at = 0
    for episode, length in waiting:
        if at == len(video.seconds):
            break
        if at + length > len(video.seconds):
            return None
        start = float(video.seconds[at])
        clips[episode] = VideoClip(video.file, start, start + length / fps)
        at += length
    return clips if at == len(video.seconds) else None
