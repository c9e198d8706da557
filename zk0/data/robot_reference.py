"""How recorded episodes begin: what a robot is compared with before a policy moves it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zk0.data.episode_reader import Episode, EpisodeReader
from zk0.data.picture_cells import picture_cells
from zk0.data.statistics import compute_moments
from zk0.records import MAX_STARTS, CameraReference, Moments

EpisodeSource = tuple[EpisodeReader, tuple[int, ...]]
"""A dataset and some of its episodes."""


def camera_references(sources: Sequence[EpisodeSource], cameras: Sequence[str]) -> tuple[CameraReference, ...]:
    """Return the first pictures of each camera, of at most `MAX_STARTS` episodes, evenly from all datasets.

    Raises:
        DatasetError: a dataset lacks a camera, or a frame cannot be decoded.
    """
    share = max(1, MAX_STARTS // max(1, len(sources)))
    starts = [(reader, episode) for reader, chosen in sources for episode in reader.read(chosen[:share])][:MAX_STARTS]
    return tuple(
        CameraReference(name=camera, pictures=tuple(_first_cells(*start, camera) for start in starts))
        for camera in cameras
    )


def _first_cells(reader: EpisodeReader, episode: Episode, camera: str) -> tuple[int, ...]:
    first: NDArray[np.uint8] = next(reader.frame_pieces(episode, camera, every=len(episode.timestamps)))[0]
    return tuple(picture_cells(first.transpose(1, 2, 0)).round().astype(int).ravel().tolist())


def start_moments(sources: Sequence[EpisodeSource]) -> Moments | None:
    """Return the moments of the first states of all episodes; None without a dataset.

    Raises:
        DatasetError: an episode cannot be read.
    """
    first = [episode.states[0] for reader, chosen in sources for episode in reader.read(chosen)]
    return compute_moments(np.stack(first)) if first else None
