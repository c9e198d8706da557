"""A look into a data set, healthy or not."""

import av
import numpy as np
import pytest

from zk0.robot.folder import BrokenFile, list_folder
from zk0.robot.preview import preview
from zk0.robot.video_file import decode_video, picture_at, read_video

WRIST = "videos/observation.images.wrist/chunk-000/file-000.mp4"


def test_first_middle_and_last(healthy) -> None:
    seen = preview(healthy)
    assert {(p.episode, p.frame) for p in seen.pictures} == {(e, f) for e in (0, 2, 3) for f in (0, 6, 11)}
    assert {p.camera for p in seen.pictures} == {"overhead", "wrist"}
    assert all(p.pixels.shape == (64, 64, 3) for p in seen.pictures)
    assert [(m.episode, m.state.shape, m.action.shape) for m in seen.motions] == [
        (e, (12, 6), (12, 6)) for e in (0, 2, 3)
    ]
    np.testing.assert_allclose(seen.motions[1].seconds, np.arange(12) / 10)
    assert seen.motions[0].names[5] == "gripper.pos"


def test_a_picture_is_the_frame_of_that_time(healthy) -> None:
    with av.open(str(healthy / WRIST)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    folder = list_folder(healthy)
    assert len(read_video(folder, WRIST).seconds) == len(frames) == 48
    assert decode_video(folder, WRIST).frames == 48
    for i in (0, 1, 17, 30, 47):
        assert np.array_equal(picture_at(folder, WRIST, i / 10), frames[i])
    with pytest.raises(BrokenFile, match=r"no picture, expected a picture at 4\.800 s"):
        picture_at(folder, WRIST, 4.8)


def test_of_a_broken_data_set_the_rest_is_shown(breaker, defects, tmp_path) -> None:
    breaker.video().write_bytes(b"no video")
    seen = preview(breaker.root)
    assert {p.camera for p in seen.pictures} == {"overhead"}
    assert len(seen.motions) == 3
    defects["truncated_table"][1](breaker)
    assert preview(breaker.root).motions == ()
    defects["no_info"][1](breaker)
    assert preview(breaker.root) == type(seen)((), ())
