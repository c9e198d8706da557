"""Rules about cameras and their videos."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from zk0.records import CAMERA_PREFIX, Finding
from zk0.robot.check import say
from zk0.robot.check.contents import Contents
from zk0.robot.check.lost import Seen
from zk0.robot.episodes import Clip
from zk0.robot.folder import BrokenFile
from zk0.robot.image_column import read_pictures
from zk0.robot.info import INFO_PATH
from zk0.robot.video_file import Decoded, VideoFile, decode_video

DARK = 20.0
"""Mean brightness (0 to 255, where video black is 16) under which a picture shows nothing."""
FROZEN = 0.05
"""Mean change of brightness under which two pictures are the same one, encoded twice."""


def look_at_all(contents: Contents) -> Seen:
    """Every readable named video and every stored picture, decoded once."""
    videos: dict[str, Decoded] = {}
    broken: dict[str, str] = {}
    for video in contents.videos:
        try:
            result = decode_video(contents.folder, video.file)
        except BrokenFile as e:
            broken[video.file] = e.found
            continue
        if result.frames == len(video.seconds):
            videos[video.file] = result
        else:
            broken[video.file] = f"{result.frames} frames decoded of {len(video.seconds)} in the container"
    return Seen(videos, broken, _broken_pictures(contents))


def _broken_pictures(contents: Contents) -> dict[int, str]:
    info = contents.info
    found: dict[int, str] = {}
    for key in info.image_keys if info else ():
        assert info is not None
        for table in contents.frames:
            if table.episode_index is None or key not in table.types:
                continue
            for row, picture in read_pictures(contents.folder, table.file, key):
                if not isinstance(picture, str) and picture.shape[:2] != _size(info.features[key].shape):
                    picture = f"a picture of {picture.shape[0]}x{picture.shape[1]}"
                if isinstance(picture, str):
                    found.setdefault(int(table.episode_index[row]), f"{key} in row {row} of {table.file}: {picture}")
    return found


def _size(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Height and width, from (height, width, channels) or (channels, height, width)."""
    return shape[1:] if len(shape) == 3 and shape[2] not in (1, 3) else shape[:2]


def no_camera(contents: Contents) -> Iterator[Finding]:
    """A vision-language-action policy needs eyes."""
    if contents.info and not contents.info.cameras:
        yield Finding(
            rule="no-camera", where=f"{INFO_PATH} features", found="no video or image", expected="at least one camera"
        )


def camera_keys(contents: Contents) -> Iterator[Finding]:
    """Cameras are called observation.images.NAME; LeRobot's policies look for that."""
    cameras = contents.info.cameras if contents.info else ()
    wrong = [k for k in cameras if not k.startswith(CAMERA_PREFIX) and k not in contents.given_renames]
    if wrong:
        yield Finding(
            rule="camera-keys",
            where=f"{INFO_PATH} features",
            found=say.some(wrong),
            expected=say.some([contents.renames[k] for k in wrong]),
            repair="rename-keys",
        )


def picture_shape(contents: Contents) -> Iterator[Finding]:
    """A camera is declared as (height, width, 3), and its videos have that size."""
    for key in contents.info.cameras if contents.info else ():
        assert contents.info is not None
        shape = contents.info.features[key].shape
        sizes = sorted({(v.height, v.width) for v in _videos(contents, key).values()})
        if len(sizes) > 1:
            yield Finding(
                rule="video-size", where=key, found=f"videos of {say.some(sizes)} pixels", expected="one size a camera"
            )
        elif len(shape) != 3 or shape[2] not in (1, 3) or (sizes and sizes[0] != shape[:2]):
            seen = f", videos of {sizes[0][0]}x{sizes[0][1]}" if sizes else ""
            yield Finding(
                rule="picture-shape",
                where=f"{INFO_PATH} features {key} shape",
                found=f"{list(shape)}{seen}",
                expected="[height, width, 3] of the videos",
                repair="declare-features" if sizes or (len(shape) == 3 and shape[0] == 3) else None,
            )


def clips(contents: Contents) -> Iterator[Finding]:
    """Each episode has its own part of a video, as long as its frames."""
    info = contents.info
    for key in info.video_keys if info else ():
        assert info is not None
        by_file: dict[str, list[tuple[Clip, int, int]]] = defaultdict(list)
        for e in contents.episodes or ():
            by_file[e.clips[key].file].append((e.clips[key], e.index, contents.length(e)))
        shared, uneven = [], []
        for parts in by_file.values():
            parts.sort(key=lambda p: p[0].start_seconds)
            shared += [
                b[1]
                for a, b in pairwise(parts)
                if b[0].start_seconds < a[0].start_seconds + a[2] / info.fps - 0.5 / info.fps
            ]
            uneven += [i for c, i, n in parts if abs(c.end_seconds - c.start_seconds - n / info.fps) > 0.5 / info.fps]
        if shared:
            yield Finding(
                rule="clips-overlap",
                where=f"{key} of {say.episodes(shared)}",
                found="frames that belong to the episode before too",
                expected="a part of the video for each episode",
            )
        if uneven:
            yield Finding(
                rule="clip-length",
                severity="warning",
                where=f"{key} of {say.episodes(sorted(uneven))}",
                found="a clip of another duration than the episode",
                expected="to_timestamp - from_timestamp == length / fps",
                repair="recount",
            )


def video_rate(contents: Contents) -> Iterator[Finding]:
    """Videos run at the rate that the data set states."""
    info = contents.info
    for key in info.video_keys if info else ():
        assert info is not None
        rates = [v.rate for v in _videos(contents, key).values() if v.rate is not None]
        wrong = [r for r in rates if abs(r - info.fps) > 0.01 * info.fps]
        if wrong:
            yield Finding(
                rule="video-rate",
                where=key,
                found=f"{len(wrong)} of {len(rates)} videos at another rate, such as {wrong[0]:.4g} pictures a second",
                expected=f"{info.fps:g}, the fps that {INFO_PATH} states",
            )


def unused_frames(contents: Contents) -> Iterator[Finding]:
    """A video holds the frames of its episodes and no others."""
    needed: dict[str, int] = defaultdict(int)
    for e in contents.episodes or ():
        for clip in e.clips.values():
            needed[clip.file] += contents.length(e)
    over = {f: len(v.seconds) - needed[f] for f, v in contents.video_by_file.items() if len(v.seconds) > needed[f]}
    if over:
        yield Finding(
            rule="unused-frames",
            severity="warning",
            where=say.some(list(over), 3),
            found=f"{sum(over.values())} frames that belong to no episode",
            expected="as many frames as rows",
        )


def dark_or_frozen(contents: Contents, seen: Seen) -> Iterator[Finding]:
    """A camera whose pictures are black or never change was covered, unplugged or hung."""
    for key in contents.info.video_keys if contents.info else ():
        decoded = [seen.videos[f] for f in _videos(contents, key) if f in seen.videos]
        brightness = np.concatenate([d.brightness for d in decoded]) if decoded else np.empty(0)
        change = np.concatenate([d.change for d in decoded]) if decoded else np.empty(0)
        if len(brightness) and float(brightness.max()) < DARK:
            what = "dark-camera", f"nothing brighter than {brightness.max():.1f} of 255"
        elif len(change) and float(change.max()) < FROZEN:
            what = "frozen-camera", "the same picture throughout"
        else:
            continue
        yield Finding(rule=what[0], severity="warning", where=key, found=what[1], expected="pictures that show motion")


def _videos(contents: Contents, key: str) -> dict[str, VideoFile]:
    named = {e.clips[key].file for e in contents.episodes or () if key in e.clips}
    return {f: v for f, v in contents.video_by_file.items() if f in named}


RULES = (no_camera, camera_keys, picture_shape, clips, video_rate, unused_frames)
