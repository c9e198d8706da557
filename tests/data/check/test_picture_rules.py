"""Warnings about pictures: neighbors of the defects in defects.py, on both sides of each limit."""

import io
import shutil

import numpy as np
import pyarrow as pa
import pytest
from defects import CASES, DATA, WRIST, change_episode, change_pictures, read_video
from PIL import Image

from zk0.data.check import check_dataset
from zk0.data.picture_measures import PictureMeter


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


def test_pictures_in_parquet_are_judged_as_those_of_videos(breaker) -> None:
    pictures = read_video(breaker.video())
    pictures[12:24] = [np.zeros_like(pictures[0])] * 12
    content = []
    for one in pictures:
        stored = io.BytesIO()
        Image.fromarray(one).save(stored, "PNG")
        content.append({"bytes": stored.getvalue(), "path": None})
    breaker.info(lambda i: i["features"][WRIST].update(dtype="image"))
    breaker.table(DATA, lambda t: t.append_column(WRIST, pa.array(content)))
    shutil.rmtree(breaker.root / f"videos/{WRIST}")
    assert warnings(breaker) == {"dark-pictures": (1,)}


def test_pictures_of_a_video_with_uneven_times_are_found_by_their_order(breaker) -> None:
    CASES["a_video_with_uneven_times"][1](breaker)
    assert warnings(breaker).keys() == {"video-times"}


@pytest.mark.parametrize("shape", [(64, 96), (7, 5), (1, 1)])
def test_measures_of_two_pictures(shape) -> None:
    meter = PictureMeter()
    one = np.zeros(shape, np.uint8)
    one[:, ::2] = 100
    meter.add(one)
    meter.add(np.full(shape, 30, np.uint8))
    found = meter.sequence()
    assert found.brightness.tolist() == [100.0, 30.0]  # every eighth pixel is an even one
    assert found.change.tolist() == [0.0, 70.0]
    assert found.sharpness.tolist() == [100.0 if shape[1] > 1 else 0.0, 0.0]
    assert found.thumbnails.shape == (2, 8, 8)
    assert (found.thumbnails[0] == 100).all()
