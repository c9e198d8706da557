"""Read single frames of a dataset in any order, as training without cached features needs them.

LeRobot's decoder opens the video for every frame, and converts every decoded frame. Here threads keep a few videos
open, decode what lies between two wanted frames of one neighborhood only once, and convert the wanted frames alone.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from numpy.typing import NDArray

from zk0.data.dataset_info import TOLERANCE_SECONDS
from zk0.data.episode_reader import Episode, EpisodeReader, image_bytes, open_lerobot_dataset
from zk0.data.frame_stream import RgbFrame, nearest_frames
from zk0.errors import DatasetError

MOST_THREADS = 8
OPEN_VIDEOS = 4
"""Files that a thread keeps open."""
NEIGHBORS_SECONDS = 0.1
"""A frame at most so much later than the one before is decoded toward; for a later one the video is sought."""


class _Wanted(NamedTuple):
    """A frame of a video, and its row in the result."""

    video: Path
    seconds: float
    episode: int
    row: int


class RandomFrames:
    """The frames of some cameras of a dataset in any order.

    Args:
        reader: of the dataset.
        episodes: that frames are wanted of.
        cameras: their names in the contract.
    """

    def __init__(self, reader: EpisodeReader, episodes: Sequence[Episode], cameras: Sequence[str]) -> None:
        self._reader, self._episodes, self._videos = reader, list(episodes), threading.local()
        self._threads = min(MOST_THREADS, os.cpu_count() or 1)
        self._executor = ThreadPoolExecutor(self._threads, "zk0-frames")
        self._stored = {c: _StoredImages(reader, self._episodes, c) for c in cameras if not reader.has_video(c)}

    def read(self, camera: str, wanted: Sequence[tuple[int, int]]) -> NDArray[np.uint8]:
        """Return (n, 3, H, W) RGB: the image of each (number of the episode among those given, frame in it).

        Raises:
            DatasetError: a frame cannot be decoded; names video and episode.
        """
        if camera in self._stored:
            return np.stack([self._stored[camera].image(*one) for one in wanted])
        places = sorted(self._place(camera, *one, row) for row, one in enumerate(wanted))
        share = -(-len(places) // self._threads)
        parts = self._executor.map(self._decode, (places[i : i + share] for i in range(0, len(places), share)))
        frames = [frame for part in parts for frame in part]
        images = np.empty((len(wanted), *frames[0].shape), np.uint8)
        for place, frame in zip(places, frames, strict=True):
            images[place.row] = frame
        return images

    def _place(self, camera: str, number: int, frame: int, row: int) -> _Wanted:
        episode = self._episodes[number]
        video, start, _ = self._reader.frame_location(episode, camera)
        return _Wanted(video, float(episode.timestamps[frame] + start), episode.index, row)

    def _decode(self, wanted: Sequence[_Wanted]) -> list[RgbFrame]:
        """The frames of places that are sorted by video and time; runs in a thread."""
        frames: list[RgbFrame] = []
        for group in _neighborhoods(wanted):
            try:
                frames += nearest_frames(self._open(group[0].video), [w.seconds for w in group], TOLERANCE_SECONDS)
            except (FFmpegError, OSError, ValueError, MemoryError, IndexError) as e:
                names = ", ".join(str(index) for index in sorted({one.episode for one in group}))
                raise DatasetError(f"{group[0].video}: a frame of episode {names} cannot be decoded: {e}") from e
        return frames

    def _open(self, video: Path) -> InputContainer:
        """The video, opened by this thread."""
        if not hasattr(self._videos, "open"):
            self._videos.open = OrderedDict()
        videos: OrderedDict[Path, InputContainer] = self._videos.open
        if video not in videos:
            if len(videos) == OPEN_VIDEOS:
                videos.popitem(last=False)[1].close()
            videos[video] = av.open(str(video))
            videos[video].streams.video[0].thread_count = 1  # the threads of this class use the cores
        videos.move_to_end(video)
        return videos[video]


def _neighborhoods(wanted: Sequence[_Wanted]) -> Iterator[list[_Wanted]]:
    """Split places that are sorted by video and time where the video changes or many frames lie between two."""
    group: list[_Wanted] = []
    for one in wanted:
        if group and (one.video != group[-1].video or one.seconds > group[-1].seconds + NEIGHBORS_SECONDS):
            yield group
            group = []
        group.append(one)
    if group:
        yield group


class _StoredImages:
    """The images of one camera that a dataset stores in parquet, read by LeRobot."""

    def __init__(self, reader: EpisodeReader, episodes: Sequence[Episode], camera: str) -> None:
        self._key = reader.stored_key(camera)
        self._rows: Any = open_lerobot_dataset(reader.root, [e.index for e in episodes], {}).hf_dataset
        lengths = {e.index: len(e.timestamps) for e in episodes}
        ends = dict(zip(sorted(lengths), np.cumsum([lengths[index] for index in sorted(lengths)]), strict=True))
        self._first = [int(ends[e.index]) - lengths[e.index] for e in episodes]

    def image(self, number: int, frame: int) -> RgbFrame:
        """(3, H, W) RGB of a frame of one of the episodes."""
        return image_bytes(self._rows[self._first[number] + frame][self._key])
