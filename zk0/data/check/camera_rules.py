"""Rules about cameras and the containers of their videos; nothing is decoded here."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from zk0.data.check.clip_places import EpisodeClip
from zk0.data.check.contents import Contents
from zk0.data.check.rule import RuleGroup, Violation
from zk0.data.check.true_rate import are_equal_rates
from zk0.data.dataset_info import INFO_PATH
from zk0.name_lists import join_episodes, join_names
from zk0.records import CAMERA_PREFIX

CAMERA_RULES = RuleGroup[[Contents], Violation]("Cameras and videos", __name__)


@CAMERA_RULES.rule("no-camera")
def no_camera(contents: Contents) -> Iterator[Violation]:
    """The dataset has a camera; a vision-language-action policy needs images."""
    if contents.info and not contents.info.cameras:
        yield Violation(f"{INFO_PATH} features", "no video or image", "at least one camera")


@CAMERA_RULES.rule("camera-keys", repairs=("rename-keys",))
def camera_keys(contents: Contents) -> Iterator[Violation]:
    """The feature key of a camera is observation.images.NAME, which LeRobot's policies expect, or is renamed to it."""
    cameras = contents.info.cameras if contents.info else ()
    wrong = [k for k in cameras if not k.startswith(CAMERA_PREFIX) and k not in contents.given_renames]
    if wrong:
        expected = join_names([contents.renames[k] for k in wrong])
        yield Violation(f"{INFO_PATH} features", join_names(wrong), expected)


@CAMERA_RULES.rule("camera-without-video", repairs=("drop-camera",))
def camera_without_video(contents: Contents) -> Iterator[Violation]:
    """There are videos of every camera that meta/info.json declares."""
    if contents.absent_cameras:
        found = "no video at all"
        yield Violation(join_names(contents.absent_cameras), found, "its videos, or no declaration of this camera")


@CAMERA_RULES.rule("video-size")
def video_size(contents: Contents) -> Iterator[Violation]:
    """All videos of a camera have one size."""
    for key in contents.info.cameras if contents.info else ():
        sizes = _sizes(contents, key)
        if len(sizes) > 1:
            yield Violation(key, f"videos of {join_names(sizes)} pixels", "one size per camera")


@CAMERA_RULES.rule(
    "picture-shape",
    repairs=("declare-features",),
    repair_if="a video is readable or the declared shape is (3, height, width)",
)
def picture_shape(contents: Contents) -> Iterator[Violation]:
    """The declared shape of a camera is (height, width, 3), and its videos have that size."""
    for key in contents.info.cameras if contents.info else ():
        assert contents.info is not None
        shape, sizes = contents.info.features[key].shape, _sizes(contents, key)
        if len(sizes) > 1:
            continue  # video-size reports it
        if len(shape) != 3 or shape[2] not in (1, 3) or (sizes and sizes[0] != shape[:2]):
            videos = f", videos of {sizes[0][0]}x{sizes[0][1]}" if sizes else ""
            yield Violation(
                where=f"{INFO_PATH} features {key} shape",
                found=f"{list(shape)}{videos}",
                expected="[height, width, 3] of the videos",
                repairable=bool(sizes) or (len(shape) == 3 and shape[0] == 3),
            )


@CAMERA_RULES.rule("clip-places", repairs=("recount",))
def clip_places(contents: Contents) -> Iterator[Violation]:
    """The episode table names the file and the time at which the frames of each clip lie.

    After a merge, offsets may count on from another file; the number of frames proves where each clip begins.
    """
    for key in contents.info.video_keys if contents.info else ():
        pairs = [(e, e.clips[key], contents.clip(e, key)) for e in contents.episodes or ()]
        wrong = [(e, a, b) for e, a, b in pairs if (a.file, a.start_seconds) != (b.file, b.start_seconds)]
        if wrong:
            episode, stated, true = wrong[0]
            yield Violation(
                where=f"{key} of {join_episodes(sorted(e.index for e, _, _ in wrong))}",
                found=f"{stated.start_seconds:.4g} s in {stated.file} for episode {episode.index}",
                expected=f"{true.start_seconds:.4g} s in {true.file}, where its frames are",
            )


@CAMERA_RULES.rule("video-times", repairs=("retime-videos",))
def video_times(contents: Contents) -> Iterator[Violation]:
    """The frames of a video follow each other at the dataset's frame rate."""
    retimed = sorted(contents.places.retimed)
    if retimed:
        rate = contents.video_by_file[retimed[0]].mean_fps or 0.0
        yield Violation(
            where=join_names(retimed, 3),
            found=f"a frame for every row in order, at other times (in the first, {rate:.4g} in a second)",
            expected=f"a frame every 1/{contents.fps:g} s",
        )


@CAMERA_RULES.rule("clips-overlap")
def clips_overlap(contents: Contents) -> Iterator[Violation]:
    """No two episodes share frames of a video."""
    info = contents.info
    for key in info.video_keys if info else ():
        shared: list[int] = []
        short = short_clips(contents, key)
        for clips in _clips_in_order(contents, key):
            shared += [
                b.episode
                for a, b in pairwise(clips)
                if a.episode not in short
                and b.clip.start_seconds < a.clip.start_seconds + (a.frames - 0.5) / contents.fps
            ]
        if shared:
            where = f"{key} of {join_episodes(shared)}"
            yield Violation(where, "frames that also belong to the episode before", "a clip of its own per episode")


def short_clips(contents: Contents, key: str) -> frozenset[int]:
    """Return the episodes whose clip of this camera has fewer frames than rows, as the episode table itself states.

    Their clip ends where the next one begins, or where the video ends, before all their rows have a frame.
    """
    fps, found = contents.fps, set()
    for clips in _clips_in_order(contents, key):
        for a, b in pairwise(clips):
            if a.is_stated_short(fps) and a.clip.end_seconds <= b.clip.start_seconds + 0.5 / fps:
                found.add(a.episode)
        last = clips[-1]
        video = contents.video_by_file.get(last.clip.file)
        if last.is_stated_short(fps) and video is not None and len(video.seconds):
            video_end = float(video.seconds[-1]) + 1 / fps
            found |= {last.episode} if abs(last.clip.end_seconds - video_end) <= 0.5 / fps else set()
    return frozenset(found)


@CAMERA_RULES.rule("clip-length", severity="warning", repairs=("recount",))
def clip_length(contents: Contents) -> Iterator[Violation]:
    """The clip of an episode, to_timestamp - from_timestamp in the episode table, lasts as long as its frames."""
    info = contents.info
    for key in info.video_keys if info and info.is_v3 else ():
        lost = short_clips(contents, key)
        rows = [(e.index, e.clips[key].end_seconds - e.clips[key].start_seconds, contents.length(e))
                for e in contents.episodes or () if e.index not in lost]  # fmt: skip
        uneven = [i for i, seconds, n in rows if abs(seconds - n / contents.fps) > 0.5 / contents.fps]
        if uneven:
            yield Violation(
                where=f"{key} of {join_episodes(sorted(uneven))}",
                found="a clip of another duration than the episode",
                expected="to_timestamp - from_timestamp == length / fps",
            )


@CAMERA_RULES.rule("video-rate")
def video_rate(contents: Contents) -> Iterator[Violation]:
    """Videos run at the fps of meta/info.json, within 1 %."""
    info = contents.info
    for key in info.video_keys if info else ():
        videos = contents.videos_of(key).items()
        rates = [v.fps for f, v in videos if v.fps is not None and f not in contents.places.retimed]
        wrong = [r for r in rates if not are_equal_rates([r], contents.fps)]
        if wrong:
            yield Violation(
                where=key,
                found=f"{len(wrong)} of {len(rates)} videos at another rate, such as {wrong[0]:.4g} frames per second",
                expected=f"{contents.fps:g}, the fps of {INFO_PATH}",
            )


@CAMERA_RULES.rule("unused-frames", severity="warning")
def unused_frames(contents: Contents) -> Iterator[Violation]:
    """A video holds only frames of episodes."""
    needed: dict[str, int] = defaultdict(int)
    for e in contents.episodes or ():
        for key in e.clips:
            needed[contents.clip(e, key).file] += contents.length(e)
    over = {f: len(v.seconds) - needed[f] for f, v in contents.video_by_file.items() if len(v.seconds) > needed[f]}
    if over:
        found = f"{sum(over.values())} frames that belong to no episode"
        yield Violation(join_names(list(over), 3), found, "as many frames as rows")


def _sizes(contents: Contents, key: str) -> list[tuple[int, int]]:
    return sorted({(v.height, v.width) for v in contents.videos_of(key).values()})


def _clips_in_order(contents: Contents, key: str) -> list[list[EpisodeClip]]:
    """Return the clips of one camera by their start, a list for each video."""
    return [sorted(clips, key=lambda c: c.clip.start_seconds) for clips in contents.clips_by_file(key).values()]
