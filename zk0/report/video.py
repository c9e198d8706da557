"""Videos that play everywhere: H.264, yuv420p, even sizes, at the true frame rate of the data."""

from collections.abc import Iterable
from contextlib import closing
from fractions import Fraction
from itertools import chain
from math import isfinite
from pathlib import Path

import imageio
import numpy as np

from zk0.errors import ReportError
from zk0.report.canvas import Frame
from zk0.report.write import aside

ENCODING = ["-crf", "23", "-preset", "veryfast", "-threads", "1", "-movflags", "+faststart"]


def write_video(path: Path, frames: Iterable[Frame], fps: float) -> int:
    """Write an .mp4 that is there whole or not at all; the number of frames is returned.

    An odd width or height gets one more column or row of the same colours.

    Raises:
        ReportError: no frame, frames of different sizes or types, a rate that is not positive, or the encoder fails.
    """
    if not (isfinite(fps) and fps > 0):
        raise ReportError(f"{path}: {fps} frames per second, expected a positive rate")
    if path.suffix != ".mp4":
        raise ReportError(f"{path}: ends in {path.suffix!r}, expected .mp4")
    coming = iter(frames)
    first = next(coming, None)
    if first is None:
        raise ReportError(f"{path}: no frame to write, expected at least one")
    size, count = np.shape(first), 0
    rate = Fraction(fps).limit_denominator(100_000)
    try:
        with (
            aside(path) as half,
            closing(
                imageio.get_writer(
                    half,
                    format="FFMPEG",
                    mode="I",
                    fps=rate,
                    codec="libx264",
                    pixelformat="yuv420p",
                    quality=None,
                    macro_block_size=1,
                    ffmpeg_log_level="error",
                    output_params=ENCODING,
                )
            ) as writer,
        ):
            for frame in chain([first], coming):
                writer.append_data(_even(frame, size, f"{path}: frame {count}"))
                count += 1
    except RuntimeError as e:
        raise ReportError(f"{path}: the encoder failed: {str(e).strip().splitlines()[0]}") from e
    return count


def _even(frame: Frame, size: tuple[int, ...], where: str) -> Frame:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ReportError(f"{where} is {frame.dtype} {frame.shape}, expected uint8 (height, width, 3)")
    if frame.shape != size:
        raise ReportError(f"{where} is {frame.shape}, expected {size} as the first one")
    return np.pad(frame, ((0, size[0] % 2), (0, size[1] % 2), (0, 0)), mode="edge")
