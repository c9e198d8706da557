"""Videos read back as they were written: every frame, at the data's true rate."""

from itertools import pairwise
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest

from zk0.errors import ReportError
from zk0.report.frames import Attempt, rollout_frames
from zk0.report.video import write_video

JOINTS = ("shoulder_pan.pos", "shoulder_lift.pos", "elbow_flex.pos", "wrist_flex.pos", "wrist_roll.pos", "gripper.pos")


def attempt(moments: int = 12, success: bool = True, task: str = "Würfel heben") -> Attempt:
    rng = np.random.default_rng(0)
    states = np.cumsum(rng.normal(size=(moments, 6)), axis=0).astype(np.float32)
    shades = [np.full((96, 96, 3), 20 * i, np.uint8) for i in range(moments)]
    return Attempt(
        images={"overhead": shades, "wrist": shades[::-1]},
        states=states,
        actions=states[1:],
        joints=JOINTS,
        fps=10.0,
        task=task,
        seed=7,
        success=success,
    )


@pytest.mark.parametrize("fps", [10.0, 30.0, 50 / 3])
def test_frames_and_rate_read_back(tmp_path: Path, fps: float) -> None:
    path = tmp_path / "rollout.mp4"
    assert write_video(path, rollout_frames(attempt(), 240), fps) == 12
    with imageio.get_reader(path) as reader:
        assert reader.count_frames() == 12
        assert reader.get_meta_data()["fps"] == pytest.approx(fps, rel=1e-3)
        assert reader.get_meta_data()["codec"] == "h264"


def test_the_cameras_are_in_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "rollout.mp4"
    frames = list(rollout_frames(attempt(), 240))
    write_video(path, frames, 10)
    with imageio.get_reader(path) as reader:
        found = reader.get_data(11).astype(int)
    assert found.shape == frames[11].shape
    middle = found[180:260, 160:300]
    assert abs(middle.mean() - 220) < 6
    assert np.abs(found - frames[11].astype(int)).mean() < 6


def test_traces_grow_with_time() -> None:
    frames = list(rollout_frames(attempt(), 240))
    changed = [np.abs(b.astype(int) - a.astype(int))[340:].sum() for a, b in pairwise(frames)]
    assert min(changed) > 0


@pytest.mark.parametrize(
    ("frames", "fps", "said"),
    [
        ([], 10.0, "no frame"),
        ([np.zeros((8, 8, 3), np.uint8)], 0.0, "rate"),
        ([np.zeros((8, 8, 3), np.float32)], 10.0, "uint8"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((10, 8, 3), np.uint8)], 10.0, "expected"),
    ],
)
def test_what_cannot_be_a_video_leaves_nothing(tmp_path: Path, frames: list[np.ndarray], fps: float, said: str) -> None:
    with pytest.raises(ReportError, match=said):
        write_video(tmp_path / "rollout.mp4", frames, fps)
    assert list(tmp_path.iterdir()) == []


def test_arrays_that_do_not_fit_are_refused() -> None:
    broken = attempt()
    with pytest.raises(ReportError, match="frames"):
        next(
            iter(
                rollout_frames(
                    Attempt(**{**broken.__dict__, "images": {"overhead": broken.images["overhead"][:3]}}), 240
                )
            )
        )
