"""Read the episodes of a LeRobot dataset: states and actions from parquet, images from video.

Training and evaluation read datasets through this module. Each video is decoded once, in order, which is faster than
LeRobot's random access; `open_lerobot_dataset` returns LeRobot's own dataset where that is needed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from zk0.data.dataset_folder import list_folder
from zk0.data.dataset_info import TOLERANCE_SECONDS, read_dataset_info
from zk0.data.episode_table import read_episode_table, read_task_table
from zk0.data.frame_stream import FrameSequence, RgbFrame, decode_frames, stack_pieces
from zk0.data.frame_table import EpisodeFrames, collect_episodes
from zk0.errors import DatasetError
from zk0.records import CAMERA_PREFIX

VIDEO_BACKEND = "pyav"
"""Of LeRobot's decoders, the one that needs no extra library."""


@dataclass(frozen=True)
class Episode:
    """States, actions, times and tasks of one episode: T frames in order, units as stored."""

    index: int
    states: NDArray[np.float32]
    """(T, joints)"""
    actions: NDArray[np.float32]
    """(T, joints)"""
    timestamps: NDArray[np.float64]
    """(T,) seconds from the episode's start."""
    tasks: tuple[str, ...]
    """(T,) task text of each frame."""


class EpisodeReader:
    """Reads the episodes of one dataset.

    Args:
        root: the dataset's folder.
        rename_map: feature key in the dataset -> key in the contract. Methods take the contract's camera names.

    Raises:
        DatasetError: the metadata cannot be read.
    """

    def __init__(self, root: Path, rename_map: Mapping[str, str] | None = None) -> None:
        self.root = root
        folder = list_folder(root)
        self._info = read_dataset_info(folder)
        self._entries = {entry.index: entry for entry in read_episode_table(folder, self._info)}
        self._tasks = read_task_table(folder, self._info)
        self.rename_map = dict(rename_map or {})
        self._stored_keys = {new: old for old, new in self.rename_map.items()}

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self._info.fps

    @property
    def episodes(self) -> tuple[int, ...]:
        """All episode indices."""
        return tuple(self._entries)

    def read(self, episodes: Sequence[int]) -> list[Episode]:
        """Read states, actions, times and tasks of these episodes, in their order.

        Raises:
            DatasetError: an episode has no rows, or a file cannot be read or lacks a column.
        """
        found = collect_episodes(self.root, episodes, self.rename_map)
        return [self._episode(index, found.get(index)) for index in episodes]

    def _episode(self, index: int, frames: EpisodeFrames | None) -> Episode:
        if frames is None:
            raise DatasetError(f"{self.root}: no rows of episode {index} in data/; check the dataset first")
        if frames.timestamp is None or frames.task_index is None:
            raise DatasetError(f"{self.root}: episode {index} has no timestamp or no task_index; check the dataset")
        return Episode(
            index=index,
            states=frames.state.astype(np.float32),
            actions=frames.action.astype(np.float32),
            timestamps=frames.timestamp,
            tasks=tuple(self._tasks[int(t)] for t in frames.task_index),
        )

    def frames(self, episode: Episode, camera: str) -> NDArray[np.uint8]:
        """Return (T, 3, H, W) RGB: every frame of one camera, decoded in order.

        Raises:
            DatasetError: there is no such camera, or a frame cannot be decoded; names video and episode.
        """
        return np.concatenate(list(self.frame_pieces(episode, camera)))

    def images(self, episode: Episode, camera: str) -> FrameSequence:
        """Return the images (H, W, 3) RGB of one camera, which are decoded as they are read.

        Raises:
            DatasetError: on reading: there is no such camera, or a frame cannot be decoded.
        """
        return FrameSequence(len(episode.timestamps), lambda: self.frame_pieces(episode, camera))

    def frame_pieces(self, episode: Episode, camera: str, every: int = 1) -> Iterator[NDArray[np.uint8]]:
        """Yield pieces (n, 3, H, W) RGB of frames 0, `every`, 2 `every`, ... of one camera, decoded in order.

        A piece has `FRAMES_AT_ONCE` frames; the last one may have fewer.

        Raises:
            DatasetError: there is no such camera, or a frame cannot be decoded; names video and episode.
        """
        key = self.stored_key(camera)
        if key in self._info.image_keys:
            return stack_pieces(self._stored_images(episode, key, every))
        return self._decoded(episode, key, every)

    def frame_location(self, episode: Episode, camera: str) -> tuple[Path, float, float]:
        """Return the file that holds an episode's frames of one camera, and where they start and end in it.

        Start and end are seconds of a video; of images in parquet they are rows of the dataset.
        """
        key, entry = self.stored_key(camera), self._entries[episode.index]
        if key in self._info.image_keys:
            first = float(entry.from_index or 0)
            return self.root / entry.data_file, first, first + entry.length
        clip = entry.clips[key]
        return self.root / clip.file, clip.start_seconds, clip.end_seconds

    def image_shape(self, camera: str) -> tuple[int, int]:
        """Return height and width of one camera's images, as meta/info.json declares them.

        Raises:
            DatasetError: there is no such camera, or its shape is not declared.
        """
        key = self.stored_key(camera)
        shape = self._info.features[key].shape
        if len(shape) != 3:
            raise DatasetError(f"{self.root}: {key} has the shape {list(shape)}, expected height, width and channels")
        height, width = shape[1:] if shape[0] == 3 else shape[:2]
        return height, width

    def has_key(self, key: str) -> bool:
        """Whether the dataset has a camera with this feature key of the contract."""
        return self._stored_keys.get(key, key) in self._info.cameras

    def has_video(self, camera: str) -> bool:
        """Whether the frames of a camera are in videos; otherwise they are images in parquet."""
        return self.stored_key(camera) not in self._info.image_keys

    def stored_key(self, camera: str) -> str:
        """Return the feature key of a camera in the dataset.

        Raises:
            DatasetError: there is no such camera.
        """
        key = self._stored_keys.get(f"{CAMERA_PREFIX}{camera}", f"{CAMERA_PREFIX}{camera}")
        if key not in self._info.cameras:
            raise DatasetError(f"{self.root}: no camera {key}; it has {', '.join(self._info.cameras) or 'none'}")
        return key

    def _decoded(self, episode: Episode, key: str, every: int) -> Iterator[NDArray[np.uint8]]:
        clip = self._entries[episode.index].clips[key]
        video, seconds = self.root / clip.file, (episode.timestamps + clip.start_seconds)[::every].tolist()
        try:
            yield from stack_pieces(decode_frames(video, seconds, TOLERANCE_SECONDS))
        except (FFmpegError, OSError, ValueError, MemoryError, IndexError) as e:
            raise DatasetError(
                f"{video}: episode {episode.index}, frames 0 to {len(episode.timestamps) - 1} cannot be decoded: {e}"
            ) from e

    def _stored_images(self, episode: Episode, key: str, every: int) -> Iterator[NDArray[np.uint8]]:
        rows = open_lerobot_dataset(self.root, [episode.index], {}).hf_dataset
        for index in range(0, len(rows), every):
            yield image_bytes(rows[index][key])


def image_bytes(image: Any) -> RgbFrame:
    """Return an image as LeRobot reads it from parquet, a tensor (3, H, W) in 0..1, as bytes."""
    found: RgbFrame = image.mul(255).round().clamp(0, 255).byte().numpy()
    return found


def open_lerobot_dataset(root: Path, episodes: Sequence[int], offsets: Mapping[str, Sequence[int]]) -> Any:
    """Open some episodes as a LeRobotDataset.

    Args:
        root: the dataset's folder.
        episodes: their indices.
        offsets: frames, relative to an item's own, by stored feature key: of these features an item has an axis of time
            and a padding mask.
    """
    from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata

    meta = LeRobotDatasetMetadata(f"local/{root.name}", root=root)
    return LeRobotDataset(
        meta.repo_id,
        root=root,
        episodes=list(episodes),
        delta_timestamps={key: [i / meta.fps for i in frames] for key, frames in offsets.items()},
        tolerance_s=TOLERANCE_SECONDS,
        video_backend=VIDEO_BACKEND,
    )


def action_chunks(episodes: Sequence[Episode], chunk_size: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the action chunks (N, chunk, joints) and the padding masks (N, chunk) of all N frames.

    A chunk starts with the frame's own action. Past the end of the episode the last action is repeated and marked as
    padding, as LeRobot's `delta_timestamps` do.
    """
    chunks, pads = [], []
    for episode in episodes:
        length = len(episode.actions)
        at, outside = offset_frames(length, np.arange(length)[:, None], range(chunk_size))
        chunks.append(episode.actions[at])
        pads.append(outside)
    return np.concatenate(chunks), np.concatenate(pads)


def offset_frames(
    frames: int, frame: int | NDArray[np.int64], offsets: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the frames at offsets from one or more frames of an episode, and where these are outside of the episode.

    Outside, the frame is the episode's first or last one.
    """
    at = frame + np.asarray(offsets)
    return at.clip(0, frames - 1), (at < 0) | (at >= frames)
