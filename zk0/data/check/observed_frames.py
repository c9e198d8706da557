"""The result of decoding every video and every stored image of a dataset: what decodes, and how bright it is."""

from collections.abc import Mapping
from typing import NamedTuple

from zk0.data.check.contents import Contents
from zk0.data.dataset_folder import BrokenFile
from zk0.data.image_column import read_images
from zk0.data.video_file import DecodedVideo, decode_video


class ObservedFrames(NamedTuple):
    """The videos and images of a dataset after decoding."""

    videos: Mapping[str, DecodedVideo]
    """File -> measurements, of every video that decodes."""
    broken_videos: Mapping[str, str]
    """File -> why it does not decode."""
    broken_images: Mapping[int, str]
    """Episode -> its first stored image that does not decode."""


NOT_OBSERVED = ObservedFrames({}, {}, {})
"""Stands for a check that decodes nothing."""


def observe_frames(contents: Contents) -> ObservedFrames:
    """Decode every readable video that the episode table names, and every stored image, once."""
    videos: dict[str, DecodedVideo] = {}
    broken: dict[str, str] = {}
    for video in contents.videos:
        try:
            decoded = decode_video(contents.folder, video.file)
        except BrokenFile as e:
            broken[video.file] = e.found
            continue
        if decoded.frames == len(video.seconds):
            videos[video.file] = decoded
        else:
            broken[video.file] = f"{decoded.frames} frames decoded of {len(video.seconds)} in the container"
    return ObservedFrames(videos, broken, _broken_images(contents))


def _broken_images(contents: Contents) -> dict[int, str]:
    info = contents.info
    found: dict[int, str] = {}
    for key in info.image_keys if info else ():
        assert info is not None
        for table in contents.frame_tables:
            if table.episode_index is None or key not in table.types:
                continue
            for row, image in read_images(contents.folder, table.file, key):
                if not isinstance(image, str) and image.shape[:2] != _size(info.features[key].shape):
                    image = f"an image of {image.shape[0]}x{image.shape[1]}"
                if isinstance(image, str):
                    found.setdefault(int(table.episode_index[row]), f"{key} in row {row} of {table.file}: {image}")
    return found


def _size(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return (height, width) of a declared shape: (height, width, channels) or (channels, height, width)."""
    return shape[1:] if len(shape) == 3 and shape[2] not in (1, 3) else shape[:2]
