"""A look into a data set: a few pictures and motions of its first, middle and last episode."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.robot.check.contents import Contents, read_contents
from zk0.robot.episodes import EpisodeEntry
from zk0.robot.folder import BrokenFile
from zk0.robot.image_column import read_pictures
from zk0.robot.info import camera_name
from zk0.robot.video_file import picture_at


@dataclass(frozen=True)
class Picture:
    """One frame of one camera."""

    episode: int
    frame: int
    camera: str
    pixels: NDArray[np.uint8]
    """(H, W, 3)"""


@dataclass(frozen=True)
class Motion:
    """Joints over one episode, in the data set's own units."""

    episode: int
    seconds: NDArray[np.float64]
    """(T,)"""
    state: NDArray[Any]
    """(T, joints)"""
    action: NDArray[Any]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Preview:
    """What could be read; the check says why the rest could not."""

    pictures: tuple[Picture, ...]
    motions: tuple[Motion, ...]


def preview(root: Path, rename_map: Mapping[str, str] | None = None) -> Preview:
    """First, middle and last frame of every camera, and the joints, of the first, middle and last episode.

    What cannot be read is left out: a preview is for people who look at a broken data set too.

    Raises:
        DatasetError: there is no such folder.
    """
    contents = read_contents(root, rename_map)
    chosen = _ends_and_middle(contents.episodes or ())
    return Preview(
        pictures=tuple(p for e in chosen for p in _pictures(contents, e)),
        motions=tuple(m for e in chosen for m in _motion(contents, e)),
    )


def _ends_and_middle[T](items: tuple[T, ...]) -> tuple[T, ...]:
    places = sorted({0, len(items) // 2, len(items) - 1}) if items else []
    return tuple(items[p] for p in places)


def _pictures(contents: Contents, episode: EpisodeEntry) -> list[Picture]:
    found: list[Picture] = []
    if contents.info is None:
        return found
    frames = _ends_and_middle(tuple(range(contents.length(episode))))
    for key, clip in sorted(episode.clips.items()):
        for frame in frames:
            try:
                pixels = picture_at(contents.folder, clip.file, clip.start_seconds + frame / contents.info.fps)
            except BrokenFile:
                continue  # the check has a finding for it
            found.append(Picture(episode.index, frame, camera_name(key), pixels))
    return found + [p for key in contents.info.image_keys for p in _stored(contents, episode, key, frames)]


def _stored(contents: Contents, episode: EpisodeEntry, key: str, frames: tuple[int, ...]) -> Iterator[Picture]:
    for table in contents.frames:
        if table.episode_index is None or key not in table.types:
            continue
        rows = np.flatnonzero(table.episode_index == episode.index)
        wanted = {int(rows[f]): f for f in frames if f < len(rows)}
        for row, pixels in read_pictures(contents.folder, table.file, key, rows=wanted):
            if not isinstance(pixels, str):
                yield Picture(episode.index, wanted[row], camera_name(key), pixels)


def _motion(contents: Contents, episode: EpisodeEntry) -> list[Motion]:
    rows, info, span = contents.rows, contents.info, contents.spans.get(episode.index)
    if rows is None or info is None or span is None or rows.state is None or rows.action is None:
        return []
    feature = info.features.get(contents.state_key)
    seconds = rows.frame[span] / info.fps
    return [Motion(episode.index, seconds, rows.state[span], rows.action[span], feature.flat_names if feature else ())]
