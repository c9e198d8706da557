"""Encoded videos are read back: all frames, at the frame rate of the data."""

from itertools import pairwise
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe

from zk0.errors import ReportError
from zk0.report.video.encoder import write_video
from zk0.report.video.video_frames import AttemptRecording, rollout_frames

JOINTS = ("shoulder_pan.pos", "shoulder_lift.pos", "elbow_flex.pos", "wrist_flex.pos", "wrist_roll.pos", "gripper.pos")


def recording(steps: int = 12, success: bool = True, task: str = "Würfel heben") -> AttemptRecording:
    rng = np.random.default_rng(0)
    states = np.cumsum(rng.normal(size=(steps, 6)), axis=0).astype(np.float32)
    shades = [np.full((96, 96, 3), 20 * i, np.uint8) for i in range(steps)]
    return AttemptRecording(
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
    assert write_video(path, lambda: rollout_frames(recording(), 240), fps) == 12
    with imageio.get_reader(path) as reader:
        assert reader.count_frames() == 12
        assert reader.get_meta_data()["fps"] == pytest.approx(fps, rel=1e-3)
        assert reader.get_meta_data()["codec"] == "h264"


def test_the_frames_show_the_camera_images(tmp_path: Path) -> None:
    path = tmp_path / "rollout.mp4"
    frames = list(rollout_frames(recording(), 240))
    write_video(path, lambda: frames, 10)
    with imageio.get_reader(path) as reader:
        found = reader.get_data(11).astype(int)
    assert found.shape == frames[11].shape
    middle = found[180:260, 160:300]
    assert abs(middle.mean() - 220) < 6
    assert np.abs(found - frames[11].astype(int)).mean() < 6


def test_traces_grow_with_time() -> None:
    frames = list(rollout_frames(recording(), 240))
    changed = [np.abs(b.astype(int) - a.astype(int))[340:].sum() for a, b in pairwise(frames)]
    assert min(changed) > 0


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        ([], 10.0, "no frame"),
        ([np.zeros((8, 8, 3), np.uint8)], 0.0, "rate"),
        ([np.zeros((8, 8, 3), np.float32)], 10.0, "uint8"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((10, 8, 3), np.uint8)], 10.0, "expected"),
    ],
)
def test_invalid_frames_and_rates_leave_no_file(
    tmp_path: Path, frames: list[np.ndarray], fps: float, message: str
) -> None:
    with pytest.raises(ReportError, match=message):
        write_video(tmp_path / "rollout.mp4", lambda: frames, fps)
    assert list(tmp_path.iterdir()) == []


def encoder_that(first_time: str, folder: Path) -> str:
    """A program that runs shell commands when it is called for the first time, and then is ffmpeg."""
    program = folder / "encoder"
    program.write_text(f'#!/bin/sh\nmkdir {folder}/called && {{ {first_time}; }}\nexec {get_ffmpeg_exe()} "$@"\n')
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    "first_time", ["kill -9 $$", "head -c 1000000 > /dev/null; kill -9 $$", "cat > /dev/null; kill -9 $$", "exit 1"]
)
def test_an_encoder_that_is_killed_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_time: str
) -> None:
    """It ends before the first frame, between two frames, after the last one, or with an error."""
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", encoder_that(first_time, tmp_path))
    path = tmp_path / "videos" / "rollout.mp4"
    assert write_video(path, lambda: rollout_frames(recording(), 240), 10) == 12
    with imageio.get_reader(path) as reader:
        assert reader.count_frames() == 12
    assert list(path.parent.iterdir()) == [path]
    assert (tmp_path / "called").is_dir()


def test_an_encoder_that_is_always_killed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", encoder_that(f"rmdir {tmp_path}/called; kill -9 $$", tmp_path))
    path = tmp_path / "videos" / "rollout.mp4"
    with pytest.raises(ReportError, match=r"rollout.mp4: the encoder was ended by SIGKILL"):
        write_video(path, lambda: rollout_frames(recording(), 240), 10)
    assert list(path.parent.iterdir()) == []


def test_arrays_of_different_lengths_are_refused() -> None:
    broken = recording()
    with pytest.raises(ReportError, match="frames"):
        next(
            iter(
                rollout_frames(
                    AttemptRecording(**{**broken.__dict__, "images": {"overhead": broken.images["overhead"][:3]}}), 240
                )
            )
        )
