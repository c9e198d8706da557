"""Read videos back as frames."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np

from zk0.errors import ReportError, first_line
from zk0.report.video.canvas import Frame


def read_video_frames(path: Path) -> list[Frame]:
    """All frames of a video, each (height, width, 3) uint8 RGB.

    Raises:
        ReportError: the video cannot be read.
    """
    return list(iterate_video_frames(path))


def iterate_video_frames(path: Path) -> Iterator[Frame]:
    """Yield the frames of a video, each (height, width, 3) uint8 RGB; one is in memory.

    Raises:
        ReportError: the video cannot be read.
    """
    try:
        reader: Any = imageio.get_reader(path)
        with reader:
            for frame in reader:
                yield np.asarray(frame)
    except (OSError, ValueError, RuntimeError, IndexError) as e:
        raise ReportError(f"{path}: cannot be read ({first_line(e)}); expected an mp4") from e


def read_frame_rate(path: Path) -> float:
    """Frames per second of a video."""
    reader: Any = imageio.get_reader(path)
    with reader:
        return float(reader.get_meta_data()["fps"])
