"""A preview of a dataset: camera images and joint curves of its first, middle and last episode.

The dataset intake flow shows it in the Prefect UI, so that a person can look at recordings before they take part.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.data.check.contents import Contents, read_contents
from zk0.data.dataset_folder import BrokenFile
from zk0.data.dataset_info import camera_name
from zk0.data.episode_table import EpisodeEntry
from zk0.data.image_column import read_images
from zk0.data.video_file import read_frame_at


@dataclass(frozen=True)
class PreviewImage:
    """One frame of one camera."""

    episode: int
    frame: int
    camera: str
    pixels: NDArray[np.uint8]
    """(H, W, 3) RGB."""


@dataclass(frozen=True)
class EpisodeMotion:
    """States and actions of one episode over time, in the dataset's own units."""

    episode: int
    seconds: NDArray[np.float64]
    """(T,) from the episode's start."""
    state: NDArray[Any]
    """(T, joints)"""
    action: NDArray[Any]
    """(T, joints)"""
    names: tuple[str, ...]
    """Of the joints; empty if the dataset declares none."""


@dataclass(frozen=True)
class Preview:
    """The images and motions that can be read; the check reports why others cannot."""

    images: tuple[PreviewImage, ...]
    motions: tuple[EpisodeMotion, ...]


def read_preview(root: Path, rename_map: Mapping[str, str] | None = None) -> Preview:
    """Read the first, middle and last frame of every camera and the joint motion of three episodes.

    The episodes are the first, the middle and the last one. What cannot be read is left out, because a broken dataset
    is previewed too.

    Args:
        root: the dataset's folder.
        rename_map: feature key in the dataset -> key in the contract.

    Raises:
        DatasetError: there is no such folder.
    """
    contents = read_contents(root, rename_map)
    chosen = _ends_and_middle(contents.episodes or ())
    return Preview(
        images=tuple(i for e in chosen for i in _images(contents, e)),
        motions=tuple(m for e in chosen for m in _motion(contents, e)),
    )


def _ends_and_middle[T](items: tuple[T, ...]) -> tuple[T, ...]:
    places = sorted({0, len(items) // 2, len(items) - 1}) if items else []
    return tuple(items[p] for p in places)


def _images(contents: Contents, episode: EpisodeEntry) -> list[PreviewImage]:
    found: list[PreviewImage] = []
    if contents.info is None:
        return found
    frames = _ends_and_middle(tuple(range(contents.length(episode))))
    for key, clip in sorted(episode.clips.items()):
        for frame in frames:
            try:
                pixels = read_frame_at(contents.folder, clip.file, clip.start_seconds + frame / contents.info.fps)
            except BrokenFile:
                continue  # the check reports it
            found.append(PreviewImage(episode.index, frame, camera_name(key), pixels))
    stored = (i for key in contents.info.image_keys for i in _stored_images(contents, episode, key, frames))
    return [*found, *stored]


def _stored_images(
    contents: Contents, episode: EpisodeEntry, key: str, frames: tuple[int, ...]
) -> Iterator[PreviewImage]:
    for table in contents.frame_tables:
        if table.episode_index is None or key not in table.types:
            continue
        rows = np.flatnonzero(table.episode_index == episode.index)
        wanted = {int(rows[f]): f for f in frames if f < len(rows)}
        for row, pixels in read_images(contents.folder, table.file, key, rows=wanted):
            if not isinstance(pixels, str):
                yield PreviewImage(episode.index, wanted[row], camera_name(key), pixels)


def _motion(contents: Contents, episode: EpisodeEntry) -> list[EpisodeMotion]:
    rows, info, span = contents.rows, contents.info, contents.spans.get(episode.index)
    if rows is None or info is None or span is None or rows.state is None or rows.action is None:
        return []
    feature = info.features.get(contents.state_key)
    names = feature.flat_names if feature else ()
    return [EpisodeMotion(episode.index, rows.frame[span] / info.fps, rows.state[span], rows.action[span], names)]
