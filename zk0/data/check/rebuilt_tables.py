"""The episode table of an interrupted recording and a lost task table, built again from the rest of the dataset."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from zk0.data.dataset_folder import BrokenFile, DatasetFolder
from zk0.data.dataset_info import DatasetInfo
from zk0.data.episode_table import EpisodeEntry, VideoClip, v2_entry, video_path
from zk0.data.frame_table import FrameTable
from zk0.data.video_file import VideoFile, probe_video

Positions = NDArray[np.int64]


class NotCertain(Exception):
    """Rows and videos do not prove the episodes; the message says why."""


def rebuild_episodes(
    folder: DatasetFolder, info: DatasetInfo, tables: Sequence[FrameTable], tasks: Mapping[int, str]
) -> tuple[EpisodeEntry, ...]:
    """Return the entries of all episodes that have rows.

    LeRobot writes the rows and the clips of a recording in the order of the episodes. So the clips are certain if each
    camera has as many video frames as there are rows, its videos are numbered without a gap, and every video ends where
    an episode ends. In v2.x each episode has files of its own.

    Args:
        folder: the dataset's.
        info: its meta/info.json.
        tables: all files below data/, in order.
        tasks: task_index -> text.

    Raises:
        NotCertain: rows and videos leave a doubt about the episodes.
    """
    rows = _rows_by_episode(tables)
    if not info.is_v3:
        return tuple(_v2_entry(episode, *found, info, tasks) for episode, found in rows.items())
    lengths = {e: len(positions) for e, (_, positions) in rows.items()}
    clips = {key: _clips(folder, key, lengths, info) for key in info.video_keys}
    entries, start = [], 0
    for episode, (table, positions) in rows.items():
        entries.append(
            EpisodeEntry(
                index=episode,
                length=lengths[episode],
                tasks=_texts(table, positions, tasks),
                data_file=table.file,
                clips={key: of_camera[episode] for key, of_camera in clips.items()},
                from_index=start,
                to_index=start + lengths[episode],
            )
        )
        start += lengths[episode]
    return tuple(entries)


def rebuild_tasks(episodes: Sequence[EpisodeEntry], tables: Sequence[FrameTable]) -> dict[int, str] | None:
    """Return task_index -> task text; None unless rows and episode table prove every text.

    An episode with as many texts as numbers has these texts for these numbers. So a text can belong only to numbers
    that are in the same episodes.
    """
    numbers: dict[int, set[int]] = defaultdict(set)
    for table in tables:
        if table.episode_index is None or table.task_index is None:
            return None
        for episode, task in zip(table.episode_index.tolist(), table.task_index.tolist(), strict=True):
            numbers[episode].add(task)
    stated = [(numbers[e.index], set(e.tasks)) for e in episodes if len(set(e.tasks)) == len(numbers[e.index])]
    known = set().union(*(texts for _, texts in stated))
    possible = {
        task: {t for t in known if all((task in has) == (t in texts) for has, texts in stated)}
        for task in sorted(set().union(*numbers.values()))
    }
    is_certain = possible and all(len(texts) == 1 for texts in possible.values())
    return {task: min(texts) for task, texts in possible.items()} if is_certain else None


def _texts(table: FrameTable, positions: Positions, tasks: Mapping[int, str]) -> tuple[str, ...]:
    numbers = [] if table.task_index is None else np.unique(table.task_index[positions]).tolist()
    return tuple(tasks[t] for t in numbers if t in tasks)


def _v2_entry(
    episode: int, table: FrameTable, positions: Positions, info: DatasetInfo, tasks: Mapping[int, str]
) -> EpisodeEntry:
    """Return the entry of an episode of v2.x, which has files of its own, named by its number."""
    row = {"episode_index": episode, "length": len(positions), "tasks": list(_texts(table, positions, tasks))}
    try:
        entry = v2_entry(row, info, table.file)
    except BrokenFile as e:
        raise NotCertain(f"{e.where} has {e.found}, expected {e.expected}") from e
    if entry.data_file != table.file:
        raise NotCertain(f"the rows of episode {episode} are in {table.file}, expected {entry.data_file}")
    return entry


def _rows_by_episode(tables: Sequence[FrameTable]) -> dict[int, tuple[FrameTable, Positions]]:
    """Return episode -> its file and its rows there; the episodes are whole and in order."""
    found: dict[int, tuple[FrameTable, Positions]] = {}
    for table in tables:
        if table.episode_index is None or table.frame_index is None:
            raise NotCertain(f"{table.file} has no episode_index or no frame_index")
        for episode in dict.fromkeys(table.episode_index.tolist()):
            positions = np.flatnonzero(table.episode_index == episode)
            if episode != len(found) or not np.array_equal(table.frame_index[positions], np.arange(len(positions))):
                raise NotCertain(f"the rows of episode {episode} in {table.file} are not whole or not in order")
            found[episode] = (table, positions)
    if not found:
        raise NotCertain("there are no rows")
    return found


def _clips(folder: DatasetFolder, key: str, lengths: Mapping[int, int], info: DatasetInfo) -> dict[int, VideoClip]:
    """Return episode -> clip of one camera, whose videos hold exactly the frames of whole episodes."""
    files = folder.files_under(f"videos/{key}", ".mp4")
    try:
        named = [video_path(info, key, number) for number in range(len(files))]
        if others := [f for f in files if f not in named]:
            raise NotCertain(f"{others[0]} has not the next number of {key}, so nothing tells the order of its videos")
        videos = [probe_video(folder, file) for file in files]
    except BrokenFile as e:
        raise NotCertain(f"{e.where} is {e.found}") from e
    frames, rows = sum(len(v.seconds) for v in videos), sum(lengths.values())
    if frames != rows:
        raise NotCertain(
            f"{key} has {frames} frames for {rows} rows, so nothing tells which frame belongs to which row"
        )
    clips: dict[int, VideoClip] = {}
    waiting = list(lengths.items())
    for video in videos:
        filled = _fill(video, waiting, info.fps)
        clips |= filled
        waiting = waiting[len(filled) :]
    return clips


def _fill(video: VideoFile, waiting: Sequence[tuple[int, int]], fps: float) -> dict[int, VideoClip]:
    """Return the clips of the next episodes, which fill a video."""
    clips: dict[int, VideoClip] = {}
    at = 0
    for episode, length in waiting:
        if at >= len(video.seconds):
            break
        start = float(video.seconds[at])
        clips[episode] = VideoClip(video.file, start, start + length / fps)
        at += length
    if at != len(video.seconds):
        raise NotCertain(f"{video.file} ends in the middle of an episode")
    return clips
