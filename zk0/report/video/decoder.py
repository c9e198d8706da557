"""Read videos back as frames."""

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
    try:
        reader: Any = imageio.get_reader(path)
        with reader:
            return [np.asarray(frame) for frame in reader]
    except (OSError, ValueError, RuntimeError, IndexError) as e:
        raise ReportError(f"{path}: cannot be read ({first_line(e)}); expected an mp4") from e


def read_frame_rate(path: Path) -> float:
    """Frames per second of a video."""
    reader: Any = imageio.get_reader(path)
    with reader:
        return float(reader.get_meta_data()["fps"])
