"""Sizes of a session's datasets, from `meta/info.json` alone; those of simulated datasets from the settings."""

from collections.abc import Iterable
from math import ceil, prod
from pathlib import Path
from typing import Literal

from zk0.data.check.metadata_check import DatasetUse, dataset_uses, read_use_info
from zk0.data.dataset_folder import list_folder
from zk0.data.dataset_info import DatasetInfo
from zk0.data.locate import downloaded_folder, hub_bytes
from zk0.records import Record
from zk0.settings.dataset_settings import LOCAL_SCHEME
from zk0.settings.session import Session

VIDEO_BYTES_PER_PIXEL = 0.05
"""Of LeRobot's AV1 videos of 224x224 to 480x640 pixels; measured: 0.02 to 0.04."""
ROW_BYTES = 300
"""Of a frame's row in parquet; measured: 100 to 250."""
SIMULATED_FRAMES = 50
"""Most frames of a simulated episode with default settings; measured: 22 (lift), 45 (stack), 46 to 50 (place)."""
SIMULATED_BYTES_PER_PIXEL = 0.2
"""Of the videos of simulated episodes, whose images are small; measured at 64x64 pixels: 0.13."""
DATASET_METADATA_BYTES = 150_000


class DatasetSize(Record):
    """A dataset of a session, and how much of it the session uses."""

    dataset: str
    purpose: str
    """`client NAME`, `partition` or `evaluation set`."""
    episodes: int
    frames: int
    clients: int
    """Clients that share it; 0 for an evaluation set."""
    held_out_episodes: int
    """Episodes that are evaluated on."""
    pixels: int
    """Pixels of one frame, all cameras together."""
    stored_bytes: int
    """Files of the dataset: as the Hub names them before a download, else estimated."""
    source: Literal["hub", "local", "simulator"]
    is_here: bool
    """Whether it need not be downloaded."""
    needs_repair: bool
    """Whether a converted copy of it is written into the cache."""

    @property
    def frames_per_episode(self) -> int:
        """Mean, rounded up."""
        return ceil(self.frames / max(self.episodes, 1))

    @property
    def held_out_frames(self) -> int:
        """Frames of the episodes that are evaluated on."""
        return min(self.frames, self.held_out_episodes * self.frames_per_episode)

    @property
    def training_frames(self) -> int:
        """Frames that are trained on, by all clients together; 0 for an evaluation set."""
        return self.frames - self.held_out_frames if self.clients else 0


def dataset_sizes(session: Session) -> tuple[DatasetSize, ...]:
    """Return the size of each dataset of a session, once for each purpose.

    Raises:
        DatasetError: a dataset has no meta/info.json, or the Hub cannot be reached.
    """
    shared = session.partition.clients if session.partition else 1
    return tuple(_size(use, session, 0 if use.is_evaluation_set else shared) for use in dataset_uses(session))


def each_dataset_once(sizes: Iterable[DatasetSize]) -> tuple[DatasetSize, ...]:
    """Return the first size of each dataset: several purposes share its files."""
    found: dict[str, DatasetSize] = {}
    for size in sizes:
        found.setdefault(size.dataset, size)
    return tuple(found.values())


def _size(use: DatasetUse, session: Session, clients: int) -> DatasetSize:
    cache = Path(session.cache_dir)
    if use.dataset.startswith("sim:"):
        return _simulated(use, session, clients)
    info, is_local = read_use_info(use, cache), use.location.startswith(LOCAL_SCHEME)
    is_here = is_local or bool(list_folder(downloaded_folder(use.dataset, cache)).files_under("data"))
    frames, episodes, pixels = max(info.total_frames or 0, 0), max(info.total_episodes or 0, 0), _pixels(info)
    return DatasetSize(
        dataset=use.dataset,
        purpose=use.purpose,
        episodes=episodes,
        frames=frames,
        clients=clients,
        held_out_episodes=_held_out(use, session, clients, episodes),
        pixels=pixels,
        stored_bytes=(None if is_here else hub_bytes(use.location)) or _usual_bytes(frames, pixels),
        source="local" if is_local else "hub",
        is_here=is_here,
        needs_repair=not info.is_v3 and use.may_repair,
    )


def _usual_bytes(frames: int, pixels: int) -> int:
    return DATASET_METADATA_BYTES + int(frames * (ROW_BYTES + pixels * VIDEO_BYTES_PER_PIXEL))


def _simulated(use: DatasetUse, session: Session, clients: int) -> DatasetSize:
    episodes = session.simulator.episodes
    frames, pixels = episodes * SIMULATED_FRAMES, 2 * session.simulator.image_size**2
    return DatasetSize(
        dataset=use.dataset,
        purpose=use.purpose,
        episodes=episodes,
        frames=frames,
        clients=clients,
        held_out_episodes=_held_out(use, session, clients, episodes),
        pixels=pixels,
        stored_bytes=DATASET_METADATA_BYTES + int(frames * (ROW_BYTES + pixels * SIMULATED_BYTES_PER_PIXEL)),
        source="simulator",
        is_here=True,
        needs_repair=False,
    )


def _held_out(use: DatasetUse, session: Session, clients: int, episodes: int) -> int:
    return min(episodes, session.data.holdout_episodes if clients else use.evaluated_episodes or episodes)


def _pixels(info: DatasetInfo) -> int:
    """Pixels of one frame of all color cameras; a shape is (height, width, 3) or (3, height, width)."""
    shapes = (info.features[key].shape for key in info.cameras)
    return sum(prod(shape) // 3 for shape in shapes)
