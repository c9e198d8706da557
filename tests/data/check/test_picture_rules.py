"""Warnings about pictures: neighbors of the defects in defects.py, on both sides of each limit."""

import io
import shutil

import numpy as np
import pyarrow as pa
import pytest
from defects import CASES, DATA, WRIST, change_episode, change_pictures, read_video
from PIL import Image, ImageFilter

from zk0.data.check import check_dataset
from zk0.data.check.contents import read_contents
from zk0.data.check.decoded_video_rules import blurred_pictures, frozen_pictures
from zk0.data.check.observed_frames import ObservedFrames
from zk0.data.picture_measures import PictureMeter, image_luma


def warnings(b) -> dict[str, tuple[int, ...]]:
    return {f.rule: f.episodes for f in check_dataset(b.root, dataset="x").findings}


def test_a_short_dark_moment_is_usual(breaker) -> None:
    change_pictures(breaker, lambda p: [*p[:24], *[np.zeros_like(p[0])] * 9, *p[33:]])
    assert warnings(breaker) == {}


def test_a_scene_that_rests_with_the_arm_is_no_frozen_camera(breaker) -> None:
    change_pictures(breaker, lambda p: [*p[:12], *[p[12]] * 12, *p[24:]])
    change_episode(breaker, 1, lambda v: np.repeat(v[:1], 12, axis=0))
    assert warnings(breaker) == {"idle-episode": (1,)}


def test_a_camera_may_hang_in_several_episodes(breaker) -> None:
    change_pictures(breaker, lambda p: [*[p[1]] * 11, p[11], *p[12:36], *[p[40]] * 12])
    assert warnings(breaker) == {"frozen-pictures": (0, 3)}


def test_a_little_less_sharp_is_usual(breaker) -> None:
    change_pictures(breaker, lambda p: [*p[:36], *[(0.6 * x + 40).astype(np.uint8) for x in p[36:]]])
    assert warnings(breaker) == {}


def test_focus_does_not_show_in_a_plain_scene(breaker) -> None:
    """A soft light on a wall: hardly an edge in the usual episodes, and none in the last one."""
    columns = np.arange(64, dtype=np.uint8)
    walls = [np.broadcast_to((100 + i + columns // 16 * (i < 36))[None, :, None], (64, 64, 3)) for i in range(48)]
    change_pictures(breaker, lambda _: [np.ascontiguousarray(w.astype(np.uint8)) for w in walls])
    assert "blurred-pictures" not in warnings(breaker)


def test_cameras_that_are_the_same_in_one_episode_only(breaker) -> None:
    other = read_video(breaker.video("overhead"))
    change_pictures(breaker, lambda p: [*p[:24], *other[24:36], *p[36:]])
    assert warnings(breaker) == {"same-pictures": (2,)}


def test_one_camera_that_was_turned_is_not_swapped(breaker) -> None:
    CASES["cameras_plugged_in_the_other_way_round"][1](breaker)
    change_pictures(breaker, lambda p: [*p[:12], *[x[::-1, ::-1] for x in p[:12]], *p[24:]], "overhead")
    assert "swapped-cameras" not in warnings(breaker)


def store_in_parquet(b) -> None:
    """Move the pictures of the wrist camera from its video into the table."""
    pictures = read_video(b.video())
    content = []
    for one in pictures:
        stored = io.BytesIO()
        Image.fromarray(one).save(stored, "PNG")
        content.append({"bytes": stored.getvalue(), "path": None})
    b.info(lambda i: i["features"][WRIST].update(dtype="image"))
    b.table(DATA, lambda t: t.append_column(WRIST, pa.array(content)))
    shutil.rmtree(b.root / f"videos/{WRIST}")


@pytest.mark.parametrize("store", [lambda b: None, store_in_parquet], ids=["video", "parquet"])
@pytest.mark.parametrize(("share", "found"), [(0.0, (1,)), (0.06, (1,)), (0.5, ())])
def test_dark_is_the_same_in_videos_and_in_parquet(breaker, store, share, found) -> None:
    change_pictures(breaker, lambda p: [*p[:12], *[(share * x).astype(np.uint8) for x in p[12:24]], *p[24:]])
    store(breaker)
    assert warnings(breaker) == ({"dark-pictures": found} if found else {})


@pytest.mark.parametrize(("frames", "found"), [(9, set()), (10, {2})])
def test_focus_that_is_lost_for_a_second_is_found(healthy, frames, found) -> None:
    """In one of three episodes of 40 frames, at 10 frames per second."""
    texture = np.random.default_rng(0).integers(0, 200, (64, 64, 3), dtype=np.uint8)
    pictures = {}
    for episode in range(3):
        meter = PictureMeter()
        for frame in range(40):
            is_blurred = episode == 2 and 20 <= frame < 20 + frames
            meter.add(image_luma(blur(texture) if is_blurred else texture)[::8])
        pictures[WRIST, episode] = meter.sequence()
    violations = blurred_pictures(read_contents(healthy), ObservedFrames({}, {}, {}, pictures))
    assert {e for v in violations for e in v.episodes} == found


@pytest.mark.filterwarnings("error")
def test_episodes_of_one_frame_are_not_frozen(healthy) -> None:
    meter = PictureMeter()
    meter.add(np.full((8, 64), 100, dtype=np.uint8))
    observed = ObservedFrames({}, {}, {}, {(WRIST, 0): meter.sequence()})
    assert list(frozen_pictures(read_contents(healthy), observed)) == []


def blur(picture: np.ndarray) -> np.ndarray:
    """Return a picture as a camera out of focus shows it."""
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(2)))


def test_pictures_of_a_video_with_uneven_times_are_found_by_their_order(breaker) -> None:
    CASES["a_video_with_uneven_times"][1](breaker)
    assert warnings(breaker).keys() == {"video-times"}


@pytest.mark.parametrize("shape", [(64, 96), (7, 5), (1, 1)])
def test_measures_of_two_pictures(shape) -> None:
    meter = PictureMeter()
    one = np.zeros(shape, np.uint8)
    one[:, ::2] = 100
    meter.add(one[::8])
    meter.add(np.full(shape, 30, np.uint8)[::8])
    found = meter.sequence()
    assert found.brightness.tolist() == [100.0, 30.0]  # every eighth pixel is an even one
    assert found.change.tolist() == [0.0, 70.0]
    assert found.contrast.tolist() == [100.0 if shape[1] > 1 else 0.0, 0.0]
    lines = {96: (94 / 95) ** 0.5, 5: (3 / 4) ** 0.5, 1: 0.0}  # second differences of 200 over first ones of 100
    assert found.sharpness.tolist() == pytest.approx([2 * lines[shape[1]], 0.0])
    assert found.thumbnails.shape == (2, 8, 8)
    assert (found.thumbnails[0] == 100).all()


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_an_edge_over_n_pixels_has_a_sharpness_of_one_over_root_n(width) -> None:
    """First differences: n of 80 / n. Second ones: two of 80 / n. Their ratio is (2 / n) ** 0.5."""
    line = np.interp(np.arange(64), [20, 20 + width], [0, 80]).astype(np.uint8)
    meter = PictureMeter()
    meter.add(np.tile(line, (4, 1)))
    assert meter.sequence().sharpness.tolist() == pytest.approx([(2 / width) ** 0.5])
