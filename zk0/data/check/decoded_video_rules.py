"""Rules about the pictures that videos and stored images show; only the full check decodes them."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from zk0.data.check.contents import Contents
from zk0.data.check.motion_measures import Floats
from zk0.data.check.observed_frames import EpisodePictures, ObservedFrames
from zk0.data.check.rule import RuleGroup, Violation
from zk0.data.picture_measures import PictureSequence
from zk0.name_lists import join_episodes

MAX_DARK_BRIGHTNESS = 10.0
"""Mean brightness (0 to 255) under which a frame shows nothing."""
MAX_FROZEN_CHANGE = 0.06
"""Mean change of brightness under which two frames are the same picture, encoded twice."""
MIN_RUN_SECONDS, MIN_RUN_FRAMES = 1.0, 5
"""Shortest run of dark or frozen pictures that is reported."""
MIN_MOVED_SHARE = 0.1
"""Share of its range by which a joint moves during a run of equal pictures that is reported."""
MAX_BLUR_SHARE = 0.7
"""Sharpness of pictures, as a share of the camera's median episode, under which they are blurred.

A Gaussian blur with a standard deviation of one pixel leaves half of it, one of two to eight pixels 26 to 61 %;
episodes of healthy recordings have at least 96 %.
"""
MIN_CONTRAST = 0.3
"""Difference of neighboring pixels (of 255) under which a scene is so plain that focus does not show."""
MAX_SAME_DIFFERENCE, MAX_SAME_SHARE = 2.5, 0.1
"""Mean difference (of 255, and as a share of the contrast) under which two pictures are the same."""
MAX_FROZEN_SHARE = 0.1
"""Change of a picture, as a share of the camera's median, under which it is the picture before, encoded twice."""
MIN_SWAP_DIFFERENCE = 9.0
"""Mean difference (of 255) of an episode's pictures from its camera's others from which cameras may be swapped."""
MIN_COMPARED_EPISODES = 3

DECODED_VIDEO_RULES = RuleGroup[[Contents, ObservedFrames], Violation]("What the pictures show", __name__)


@DECODED_VIDEO_RULES.rule("dark-camera", severity="warning")
def dark_camera(contents: Contents, observed: ObservedFrames) -> Iterator[Violation]:
    """Every camera shows something brighter than black; a dark one was covered or unplugged."""
    for key, parts in _by_camera(contents, observed.pictures).items():
        if (brightest := _brightest(parts)) < MAX_DARK_BRIGHTNESS:
            yield Violation(key, f"nothing brighter than {brightest:.1f} of 255", "frames that show motion")


@DECODED_VIDEO_RULES.rule("dark-pictures", severity="warning")
def dark_pictures(contents: Contents, observed: ObservedFrames) -> Iterator[Violation]:
    """No camera is dark for a second or more of an episode, as when it is covered or lost for a while."""
    for key, parts in _by_camera(contents, observed.pictures).items():
        if _brightest(parts) < MAX_DARK_BRIGHTNESS:
            continue  # dark-camera reports it
        runs = {e: _longest_run(p.brightness < MAX_DARK_BRIGHTNESS) for e, p in parts.items()}
        dark = {e: r for e, r in runs.items() if _size(r) >= min(_shortest_run(contents), len(parts[e]))}
        yield from _run_violation(contents, key, dark, "dark")


@DECODED_VIDEO_RULES.rule("frozen-camera", severity="warning")
def frozen_camera(contents: Contents, observed: ObservedFrames) -> Iterator[Violation]:
    """The picture of every camera changes; one that never changes comes from a camera that hung."""
    for key, parts in _by_camera(contents, observed.pictures).items():
        if _is_frozen(parts) and _brightest(parts) >= MAX_DARK_BRIGHTNESS:
            yield Violation(key, "the same picture in all frames", "frames that show motion")


@DECODED_VIDEO_RULES.rule("frozen-pictures", severity="warning")
def frozen_pictures(contents: Contents, observed: ObservedFrames) -> Iterator[Violation]:
    """No camera shows one picture for a second or more while the arm moves, as when it hangs for a while."""
    for key, parts in _by_camera(contents, observed.pictures).items():
        changes = np.concatenate([p.change[1:] for p in parts.values()])
        if _is_frozen(parts) or not changes.size:
            continue  # frozen-camera reports it; or every episode has a single frame
        frozen = {}
        most = min(MAX_FROZEN_CHANGE, MAX_FROZEN_SHARE * float(np.median(changes)))
        for episode, pictures in parts.items():
            still = pictures.change <= most
            still &= pictures.brightness >= MAX_DARK_BRIGHTNESS
            run = _longest_run(still)
            if _size(run) >= _shortest_run(contents) and _moved(contents, episode, run) >= MIN_MOVED_SHARE:
                frozen[episode] = run
        yield from _run_violation(contents, key, frozen, "one picture while the arm moves")


@DECODED_VIDEO_RULES.rule("blurred-pictures", severity="warning")
def blurred_pictures(contents: Contents, observed: ObservedFrames) -> Iterator[Violation]:
    """No camera is out of focus in an episode, or for a second or more of it, compared with its other episodes."""
    for key, parts in _by_camera(contents, observed.pictures).items():
        clear = {e: _shows_focus(p) for e, p in parts.items()}
        sharpness = {e: float(np.median(p.sharpness[clear[e]])) for e, p in parts.items() if np.mean(clear[e]) > 0.5}
        if len(sharpness) < MIN_COMPARED_EPISODES:
            continue
        limit = MAX_BLUR_SHARE * float(np.median(list(sharpness.values())))
        runs = {e: _longest_run(clear[e] & (p.sharpness < limit)) for e, p in parts.items()}
        whole = {e: slice(0, len(parts[e])) for e, median in sharpness.items() if median < limit}
        long = {e: run for e, run in runs.items() if _size(run) >= _shortest_run(contents)}
        yield from _run_violation(contents, key, dict(sorted((long | whole).items())), "out of focus")


@DECODED_VIDEO_RULES.rule("same-pictures", severity="warning")
def same_pictures(contents: Contents, observed: ObservedFrames) -> Iterator[Violation]:
    """No two cameras show the same pictures, as when one device was opened twice."""
    for (one, a), (other, b) in combinations(_by_camera(contents, observed.pictures).items(), 2):
        same = tuple(e for e in sorted(a.keys() & b.keys()) if _are_same(a[e], b[e]))
        if same:
            found = f"the pictures of {one}"
            yield Violation(f"{other} of {join_episodes(same)}", found, "a view of its own", episodes=same)


@DECODED_VIDEO_RULES.rule("swapped-cameras", severity="warning")
def swapped_cameras(contents: Contents, observed: ObservedFrames) -> Iterator[Violation]:
    """Every camera keeps its view; in no episode do two cameras show what the other one shows in the others."""
    for (one, a), (other, b) in combinations(_by_camera(contents, observed.pictures).items(), 2):
        if swapped := _swapped_episodes(a, b):
            yield Violation(
                where=f"{one} and {other} of {join_episodes(swapped)}",
                found="the view of the other camera in both",
                expected="the view of the other episodes",
                episodes=swapped,
            )


def _by_camera(contents: Contents, pictures: EpisodePictures) -> dict[str, dict[int, PictureSequence]]:
    """Return color camera -> episode -> its pictures."""
    found: dict[str, dict[int, PictureSequence]] = defaultdict(dict)
    cameras = contents.info.cameras if contents.info else ()
    for (key, episode), sequence in sorted(pictures.items()):
        if key in cameras and len(sequence):
            found[key][episode] = sequence
    return found


def _brightest(parts: Mapping[int, PictureSequence]) -> float:
    return max(float(p.brightness.max()) for p in parts.values())


def _shows_focus(pictures: PictureSequence) -> NDArray[np.bool_]:
    """Return the mask of the pictures that are neither dark nor so plain that focus does not show."""
    return (pictures.brightness >= MAX_DARK_BRIGHTNESS) & (pictures.contrast >= MIN_CONTRAST)


def _is_frozen(parts: Mapping[int, PictureSequence]) -> bool:
    """Return whether all pictures of a camera are one."""
    thumbnails = np.concatenate([p.thumbnails for p in parts.values()])
    return len(thumbnails) > 1 and float(np.abs(thumbnails - thumbnails[0]).mean(axis=(1, 2)).max()) < MAX_FROZEN_CHANGE


def _longest_run(mask: NDArray[np.bool_]) -> slice:
    """Return the longest run of true values; empty if there is none."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    runs = [slice(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
    return max(runs, key=_size, default=slice(0, 0))


def _size(run: slice) -> int:
    return int(run.stop - run.start)


def _shortest_run(contents: Contents) -> int:
    return max(MIN_RUN_FRAMES, round(MIN_RUN_SECONDS * contents.fps))


def _moved(contents: Contents, episode: int, run: slice) -> float:
    """Return the largest share of its range by which a joint moves during a run of frames."""
    motion = contents.motion
    if motion is None or episode not in motion.episodes:
        return 0.0
    part: Floats = motion.episodes[episode].state[run]
    moving = motion.state_range > 0
    return float(((part.max(axis=0) - part.min(axis=0))[moving] / motion.state_range[moving]).max(initial=0.0))


def _run_violation(contents: Contents, key: str, runs: Mapping[int, slice], what: str) -> Iterator[Violation]:
    if runs:
        episode, run = next(iter(runs.items()))
        yield Violation(
            where=f"{key} of {join_episodes(list(runs))}",
            found=f"{what} for {_size(run) / contents.fps:.3g} s (from frame {run.start} of episode {episode} on)",
            expected="pictures that show the motion",
            episodes=tuple(runs),
        )


def _are_same(a: PictureSequence, b: PictureSequence) -> bool:
    difference = np.abs(a.thumbnails - b.thumbnails).mean(axis=(1, 2))
    contrast = float(np.median(a.thumbnails.std(axis=(1, 2))))
    return float(np.median(difference)) < min(MAX_SAME_DIFFERENCE, MAX_SAME_SHARE * contrast)


def _swapped_episodes(a: Mapping[int, PictureSequence], b: Mapping[int, PictureSequence]) -> tuple[int, ...]:
    both = sorted(a.keys() & b.keys())
    if len(both) < MIN_COMPARED_EPISODES:
        return ()
    views = np.stack([[np.median(one[e].thumbnails, axis=0) for e in both] for one in (a, b)])
    usual = np.median(views, axis=1)
    own = np.abs(views - usual[:, None]).mean(axis=(2, 3))
    crossed = np.abs(views - usual[::-1, None]).mean(axis=(2, 3))
    is_swapped = ((crossed < 0.5 * own) & (own > MIN_SWAP_DIFFERENCE)).all(axis=0)
    return tuple(e for e, swapped in zip(both, is_swapped.tolist(), strict=True) if swapped)
