"""Frames of a dataset in any order: the same pixels as in order, whatever lies between them."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from zk0.errors import DatasetError


@pytest.mark.parametrize("decoded_toward", [0.1, 10.0])
def test_frames_are_those_that_are_decoded_in_order(
    record: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded_toward: float
) -> None:
    import zk0.data.random_frames as module
    from zk0.data.episode_reader import EpisodeReader

    monkeypatch.setattr(module, "OPEN_VIDEOS", 1)  # a thread has to close a video for the next one
    monkeypatch.setattr(module, "NEIGHBORS_SECONDS", decoded_toward)
    reader = EpisodeReader(record(tmp_path / "set", 3, (12, 15, 31)))
    episodes = reader.read([2, 0])
    frames = module.RandomFrames(reader, episodes, ("overhead", "wrist"))
    wanted = [(0, 30), (1, 0), (0, 0), (1, 11), (0, 29), (0, 30), (1, 5), (0, 7)]
    for camera in ("wrist", "overhead", "wrist"):
        expected = [reader.frames(episode, camera) for episode in episodes]
        found = frames.read(camera, wanted)
        assert found.dtype == np.uint8
        for image, (number, frame) in zip(found, wanted, strict=True):
            assert (image == expected[number][frame]).all()


def test_a_frame_that_cannot_be_decoded_is_named(record: Callable[..., Path], tmp_path: Path) -> None:
    from zk0.data.episode_reader import EpisodeReader
    from zk0.data.random_frames import RandomFrames

    root = record(tmp_path / "set", 9, (6, 6), ("wrist",))
    video = root / "videos/observation.images.wrist/chunk-000/file-000.mp4"
    reader = EpisodeReader(root)
    frames = RandomFrames(reader, reader.read([0, 1]), ("wrist",))
    os.truncate(video, video.stat().st_size // 2)
    with pytest.raises(DatasetError, match=r"file-000.mp4: a frame of episode 1 cannot be decoded"):
        frames.read("wrist", [(1, 5)])
