"""Write recorded episodes as a LeRobot dataset."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.data.episode_reader import VIDEO_BACKEND
from zk0.errors import DatasetError
from zk0.records import ACTION, CAMERA_PREFIX, STATE
from zk0.storage.atomic import atomic_folder

_CRF = 10
"""Quality of the video. With this and full color resolution (4:4:4), an image of 96 pixels differs by 0.6 of 255 on the
mean from the rendered one; by 3.7 with LeRobot's default, whose color has half the resolution, at any quality (decision
0027)."""


@dataclass(frozen=True)
class RecordedFrame:
    """One time step of a recording."""

    state: NDArray[np.float32]
    """(joints,), before the action."""
    action: NDArray[np.float32]
    """(joints,) joint targets."""
    images: Mapping[str, NDArray[np.uint8]]
    """Camera name -> (H, W, 3) RGB."""
    task: str
    """Task text."""


def write_dataset(
    target: Path, episodes: Iterable[Sequence[RecordedFrame]], *, fps: int, joints: Sequence[str], robot_type: str
) -> int:
    """Write episodes as a LeRobot v3.0 dataset and return their number.

    The dataset is written to a temporary folder and renamed at the end, so `target` is complete or absent.

    Args:
        target: a folder that does not exist yet.
        episodes: the frames of each episode.
        fps: frames per second.
        joints: names of the dimensions of state and action.
        robot_type: stored in meta/info.json.

    Raises:
        DatasetError: there is no episode, or `target` exists already.
    """
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets import LeRobotDataset

    if target.exists():
        raise DatasetError(f"{target}: exists already; a recording never overwrites a folder")
    dataset: Any = None
    count = 0
    with atomic_folder(target) as temporary:
        try:
            for episode in episodes:
                if dataset is None:
                    dataset = LeRobotDataset.create(
                        f"local/{target.name}",
                        fps,
                        _features(episode[0], joints),
                        root=temporary,
                        robot_type=robot_type,
                        video_backend=VIDEO_BACKEND,
                        rgb_encoder=RGBEncoderConfig(vcodec="h264", pix_fmt="yuv444p", crf=_CRF),
                    )
                for frame in episode:
                    images = {f"{CAMERA_PREFIX}{name}": image for name, image in frame.images.items()}
                    dataset.add_frame({STATE: frame.state, ACTION: frame.action, "task": frame.task, **images})
                dataset.save_episode(parallel_encoding=False)
                count += 1
            if dataset is None:
                raise DatasetError(f"{target}: no episode was recorded")
        finally:
            if dataset is not None:
                dataset.finalize()  # after a failure, too: else its destructor writes into the removed folder
    return count


def _features(frame: RecordedFrame, joints: Sequence[str]) -> dict[str, dict[str, Any]]:
    numbers = {"dtype": "float32", "shape": (len(joints),), "names": list(joints)}
    cameras = {
        f"{CAMERA_PREFIX}{name}": {"dtype": "video", "shape": image.shape, "names": ["height", "width", "channels"]}
        for name, image in frame.images.items()
    }
    return {STATE: numbers, ACTION: dict(numbers), **cameras}
