"""The result of decoding all videos and stored images of a dataset: what decodes, and measures of the pictures."""

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from zk0.data.check.contents import Contents
from zk0.data.dataset_folder import BrokenFile
from zk0.data.frame_progress import FrameCounter, FrameProgress
from zk0.data.image_column import read_images
from zk0.data.picture_measures import SAMPLE_STEP, PictureMeter, PictureSequence, image_luma
from zk0.data.video_file import DecodedVideo, decode_video

EpisodePictures = Mapping[tuple[str, int], PictureSequence]
"""(feature key of a camera, episode) -> its pictures, one for each row; only where they are complete."""


class ObservedFrames(NamedTuple):
    """The videos and images of a dataset after decoding."""

    videos: Mapping[str, DecodedVideo]
    """File -> measurements, of every video that decodes."""
    broken_videos: Mapping[str, str]
    """File -> why it does not decode."""
    broken_images: Mapping[int, str]
    """Episode -> its first stored image that does not decode."""
    pictures: EpisodePictures
    """Measures of the pictures of each camera and episode."""


NOT_OBSERVED = ObservedFrames({}, {}, {}, {})
"""Stands for a check that decodes nothing."""


def observe_frames(
    contents: Contents, work: str, progress: FrameProgress, known: Mapping[str, DecodedVideo] | None = None
) -> ObservedFrames:
    """Decode every readable video that the episode table names, and every stored image, once.

    Args:
        contents: the dataset's.
        work: what is done, for the progress.
        progress: called after each frame that is decoded.
        known: file -> measurements, of videos that need no decoding: a file of equal content was decoded before.
    """
    known = known or {}
    stored = len(contents.info.image_keys) * sum(t.rows for t in contents.frame_tables) if contents.info else 0
    unknown = sum(len(v.seconds) for v in contents.videos if v.file not in known)
    counter = FrameCounter(work, stored + unknown, progress)
    videos: dict[str, DecodedVideo] = {}
    broken: dict[str, str] = {}
    for video in contents.videos:
        try:
            decoded = known.get(video.file) or decode_video(contents.folder, video.file, counter.count)
        except BrokenFile as e:
            broken[video.file] = e.found
            continue
        if decoded.frames == len(video.seconds):
            videos[video.file] = decoded
        else:
            broken[video.file] = f"{decoded.frames} frames decoded of {len(video.seconds)} in the container"
    broken_images, images = _observe_images(contents, counter)
    return ObservedFrames(videos, broken, broken_images, _video_pictures(contents, videos) | images)


def _video_pictures(contents: Contents, videos: Mapping[str, DecodedVideo]) -> dict[tuple[str, int], PictureSequence]:
    found = {}
    for key in contents.info.video_keys if contents.info else ():
        for file, clips in contents.clips_by_file(key).items():
            if file not in videos:
                continue
            for clip in clips:
                span = contents.spans.get(clip.episode)
                is_retimed = file in contents.places.retimed
                positions = clip.positions(contents.video_by_file[file], contents.fps, retimed=is_retimed)
                if span is not None and positions is not None and len(positions) == span.stop - span.start:
                    found[key, clip.episode] = videos[file].pictures.at(positions)
    return found


def _observe_images(
    contents: Contents, counter: FrameCounter
) -> tuple[dict[int, str], dict[tuple[str, int], PictureSequence]]:
    """Return episode -> its first broken image, and the pictures of the complete ones."""
    info = contents.info
    broken: dict[int, str] = {}
    meters: dict[tuple[str, int], PictureMeter] = defaultdict(PictureMeter)
    for key in info.image_keys if info else ():
        assert info is not None
        for table in contents.frame_tables:
            if table.episode_index is None or key not in table.types:
                continue
            for row, image in read_images(contents.folder, table.file, key):
                counter.count()
                episode = int(table.episode_index[row])
                if not isinstance(image, str) and image.shape[:2] != _size(info.features[key].shape):
                    image = f"an image of {image.shape[0]}x{image.shape[1]}"
                if isinstance(image, str):
                    broken.setdefault(episode, f"{key} in row {row} of {table.file}: {image}")
                else:
                    meters[key, episode].add(image_luma(image[::SAMPLE_STEP]))
    pictures = {place: meter.sequence() for place, meter in meters.items()}
    rows = {e: s.stop - s.start for e, s in contents.spans.items()}
    in_order = contents.rows is not None and contents.rows.in_order
    return broken, {p: q for p, q in pictures.items() if in_order and len(q) == rows.get(p[1])}


def _size(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return (height, width) of a declared shape: (height, width, channels) or (channels, height, width)."""
    return shape[1:] if len(shape) == 3 and shape[2] not in (1, 3) else shape[:2]
