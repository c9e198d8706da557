"""LeRobot data sets on disk: read the numbers of one, decode its frames in order, write one."""

import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.errors import DatasetError
from zk0.records import ACTION, CAMERA_PREFIX, STATE
from zk0.robot.episodes import read_episode_table, read_task_table
from zk0.robot.folder import list_folder
from zk0.robot.info import read_info
from zk0.robot.priority import own_priority

VIDEO_BACKEND = "pyav"
TOLERANCE_SECONDS = 1e-4


@dataclass(frozen=True)
class Episode:
    """The numbers of one episode: T frames in order, units as stored."""

    index: int
    states: NDArray[np.float32]
    """(T, joints)"""
    actions: NDArray[np.float32]
    """(T, joints)"""
    timestamps: NDArray[np.float64]
    """(T,) seconds from the episode's start."""
    tasks: tuple[str, ...]
    """(T,) what the robot was told."""


class EpisodeReader:
    """Reads the episodes of one data set: numbers from parquet, frames by decoding each video once, in order.

    `rename_map` maps feature keys of the data set to those of the contract; cameras are named by the
    contract everywhere outside this class.

    Raises:
        DatasetError: its metadata cannot be read.
    """

    def __init__(self, root: Path, rename_map: Mapping[str, str] | None = None) -> None:
        self.root = root
        folder = list_folder(root)
        self._info = read_info(folder)
        self._entries = {entry.index: entry for entry in read_episode_table(folder, self._info)}
        self._tasks = read_task_table(folder, self._info)
        self._stored = {new: old for old, new in (rename_map or {}).items()}

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self._info.fps

    @property
    def episodes(self) -> tuple[int, ...]:
        """All episode indices."""
        return tuple(self._entries)

    def read(self, episodes: Sequence[int]) -> list[Episode]:
        """The numbers of some episodes, in the order asked for.

        Raises:
            DatasetError: an episode is not there.
        """
        import pyarrow.dataset as parquet

        state, action = self._stored.get(STATE, STATE), self._stored.get(ACTION, ACTION)
        columns = ["episode_index", "frame_index", "timestamp", "task_index", state, action]
        chosen = parquet.field("episode_index").isin(list(episodes))
        files = sorted(str(p) for p in (self.root / "data").glob("*/*.parquet"))
        rows = parquet.dataset(files).to_table(columns=columns, filter=chosen)
        index = rows["episode_index"].to_numpy()
        order = np.lexsort((rows["frame_index"].to_numpy(), index))
        states = np.stack(rows[state].to_numpy())[order].astype(np.float32)
        actions = np.stack(rows[action].to_numpy())[order].astype(np.float32)
        times = rows["timestamp"].to_numpy()[order].astype(np.float64)
        tasks = [self._tasks[int(t)] for t in rows["task_index"].to_numpy()[order]]
        found = []
        for episode in episodes:
            (at,) = np.nonzero(index[order] == episode)
            if not len(at):
                raise DatasetError(f"{self.root}: no rows of episode {episode} in data/; check the data set first")
            found.append(Episode(episode, states[at], actions[at], times[at], tuple(tasks[i] for i in at)))
        return found

    def frames(self, episode: Episode, camera: str) -> NDArray[np.uint8]:
        """(T, 3, H, W): every frame of one camera, decoded sequentially.

        Raises:
            DatasetError: names the episode, the camera and the video that cannot be decoded.
        """
        key = self._key(camera)
        if key in self._info.image_keys:
            return self._stored_images(episode, key)
        return self._decoded(episode, key)

    def source(self, episode: Episode, camera: str) -> tuple[Path, float, float]:
        """The file that holds an episode's frames of one camera, and from when to when in it, in seconds (of stored
        images: from which to which row of the data set)."""
        key, entry = self._key(camera), self._entries[episode.index]
        if key in self._info.image_keys:
            first = float(entry.from_index or 0)
            return self.root / entry.data_file, first, first + entry.length
        clip = entry.clips[key]
        return self.root / clip.file, clip.start_seconds, clip.end_seconds

    def _key(self, camera: str) -> str:
        key = self._stored.get(f"{CAMERA_PREFIX}{camera}", f"{CAMERA_PREFIX}{camera}")
        if key not in self._info.cameras:
            raise DatasetError(f"{self.root}: no camera {key}; it has {', '.join(self._info.cameras) or 'none'}")
        return key

    def _decoded(self, episode: Episode, key: str) -> NDArray[np.uint8]:
        from lerobot.datasets.video_utils import decode_video_frames

        clip = self._entries[episode.index].clips[key]
        video, start = self.root / clip.file, clip.start_seconds
        try:
            frames = decode_video_frames(
                video, (episode.timestamps + start).tolist(), TOLERANCE_SECONDS, VIDEO_BACKEND, return_uint8=True
            )
        except (OSError, ValueError, RuntimeError, AssertionError) as e:
            raise DatasetError(
                f"{video}: episode {episode.index}, frames 0 to {len(episode.timestamps) - 1} cannot be decoded: {e}"
            ) from e
        return frames.numpy()

    def _stored_images(self, episode: Episode, key: str) -> NDArray[np.uint8]:
        from lerobot.datasets import LeRobotDataset

        name = f"local/{self.root.name}"
        data = LeRobotDataset(name, root=self.root, episodes=[episode.index], video_backend=VIDEO_BACKEND)
        pictures = [data[i][key].mul(255).round().clamp(0, 255).byte().numpy() for i in range(len(data))]
        return np.stack(pictures)


def open_dataset(root: Path, episodes: Sequence[int], action_key: str, chunk_size: int) -> Any:
    """lerobot's own LeRobotDataset of some episodes; each item carries a chunk of actions and its padding."""
    from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata

    meta = LeRobotDatasetMetadata(f"local/{root.name}", root=root)
    return LeRobotDataset(
        meta.repo_id,
        root=root,
        episodes=list(episodes),
        delta_timestamps={action_key: [i / meta.fps for i in range(chunk_size)]},
        tolerance_s=TOLERANCE_SECONDS,
        video_backend=VIDEO_BACKEND,
    )


def action_chunks(episodes: Sequence[Episode], chunk_size: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Targets (N, chunk, joints) and padding (N, chunk) for all frames: each frame's own action first.

    Past an episode's end the last action is repeated and marked as padding, as lerobot's
    `delta_timestamps` do.
    """
    chunks, pads = [], []
    for episode in episodes:
        length = len(episode.actions)
        wanted = np.arange(length)[:, None] + np.arange(chunk_size)[None]
        chunks.append(episode.actions[np.minimum(wanted, length - 1)])
        pads.append(wanted >= length)
    return np.concatenate(chunks), np.concatenate(pads)


@dataclass(frozen=True)
class RecordedFrame:
    """One moment of a recording."""

    state: NDArray[np.float32]
    action: NDArray[np.float32]
    images: Mapping[str, NDArray[np.uint8]]
    """Camera name -> (H, W, 3)."""
    task: str


def write_dataset(
    target: Path, episodes: Iterable[Sequence[RecordedFrame]], *, fps: int, joints: Sequence[str], robot_type: str
) -> int:
    """Write episodes as a LeRobot v3.0 data set, whole or not at all; returns their number.

    Raises:
        DatasetError: there was no episode, or the folder exists already.
    """
    from lerobot.datasets import LeRobotDataset

    if target.exists():
        raise DatasetError(f"{target}: exists already; a recording never overwrites")
    target.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    dataset: Any = None
    count = 0
    try:
        for episode in episodes:
            if dataset is None:
                features = _features(episode[0], joints)
                dataset = LeRobotDataset.create(
                    f"local/{target.name}",
                    fps,
                    features,
                    root=half / "set",
                    robot_type=robot_type,
                    video_backend=VIDEO_BACKEND,
                )
            for frame in episode:
                images = {f"{CAMERA_PREFIX}{name}": image for name, image in frame.images.items()}
                dataset.add_frame({STATE: frame.state, ACTION: frame.action, "task": frame.task, **images})
            with own_priority():
                dataset.save_episode(parallel_encoding=False)
            count += 1
        if dataset is None:
            raise DatasetError(f"{target}: no episode was recorded")
        dataset.finalize()
        (half / "set").rename(target)
    finally:
        if dataset is not None:
            dataset.finalize()  # or it would write what is left into the removed folder when it is collected
        shutil.rmtree(half, ignore_errors=True)
    return count


def _features(frame: RecordedFrame, joints: Sequence[str]) -> dict[str, dict[str, Any]]:
    numbers = {"dtype": "float32", "shape": (len(joints),), "names": list(joints)}
    pictures = {
        f"{CAMERA_PREFIX}{name}": {"dtype": "video", "shape": image.shape, "names": ["height", "width", "channels"]}
        for name, image in frame.images.items()
    }
    return {STATE: numbers, ACTION: dict(numbers), **pictures}
