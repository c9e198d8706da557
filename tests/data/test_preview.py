"""The preview of a dataset, healthy or broken."""

import av
import numpy as np
import pytest

from zk0.data.dataset_folder import BrokenFile, list_folder
from zk0.data.preview import read_preview
from zk0.data.video_file import decode_video, probe_video, read_frame_at

WRIST = "videos/observation.images.wrist/chunk-000/file-000.mp4"


def test_first_middle_and_last(healthy) -> None:
    found = read_preview(healthy)
    assert {(p.episode, p.frame) for p in found.images} == {(e, f) for e in (0, 2, 3) for f in (0, 6, 11)}
    assert {p.camera for p in found.images} == {"overhead", "wrist"}
    assert all(p.pixels.shape == (64, 64, 3) for p in found.images)
    assert [(m.episode, m.state.shape, m.action.shape) for m in found.motions] == [
        (e, (12, 6), (12, 6)) for e in (0, 2, 3)
    ]
    np.testing.assert_allclose(found.motions[1].seconds, np.arange(12) / 10)
    assert found.motions[0].names[5] == "gripper.pos"


def test_a_frame_is_found_by_its_time(healthy) -> None:
    with av.open(str(healthy / WRIST)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    folder = list_folder(healthy)
    assert len(probe_video(folder, WRIST).seconds) == len(frames) == 48
    assert decode_video(folder, WRIST).frames == 48
    for i in (0, 1, 17, 30, 47):
        assert np.array_equal(read_frame_at(folder, WRIST, i / 10), frames[i])
    with pytest.raises(BrokenFile, match=r"no frame, expected a frame at 4\.800 s"):
        read_frame_at(folder, WRIST, 4.8)


def test_the_readable_parts_of_a_broken_dataset_are_shown(breaker, defects, tmp_path) -> None:
    breaker.video().write_bytes(b"no video")
    found = read_preview(breaker.root)
    assert {p.camera for p in found.images} == {"overhead"}
    assert len(found.motions) == 3
    defects["truncated_table"][1](breaker)
    assert read_preview(breaker.root).motions == ()
    defects["no_info"][1](breaker)
    assert read_preview(breaker.root) == type(found)((), ())
