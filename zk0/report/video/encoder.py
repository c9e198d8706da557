"""Encode videos for common players: H.264, yuv420p, even sizes, at the frame rate of the data."""

from collections.abc import Iterable
from contextlib import closing
from fractions import Fraction
from itertools import chain
from math import isfinite
from pathlib import Path

import imageio
import numpy as np

from zk0.errors import ReportError, first_line
from zk0.report.video.canvas import Frame
from zk0.storage.atomic import atomic_path

ENCODER_OPTIONS = ["-crf", "23", "-preset", "veryfast", "-threads", "1", "-movflags", "+faststart"]


def write_video(path: Path, frames: Iterable[Frame], fps: float) -> int:
    """Write an .mp4 atomically and return its number of frames.

    An odd width or height is padded by repeating the last column or row.

    Raises:
        ReportError: there is no frame, frames differ in size or type, the rate is not positive, or the encoder fails.
    """
    if not (isfinite(fps) and fps > 0):
        raise ReportError(f"{path}: {fps} frames per second, expected a positive rate")
    if path.suffix != ".mp4":
        raise ReportError(f"{path}: ends in {path.suffix!r}, expected .mp4")
    remaining = iter(frames)
    first = next(remaining, None)
    if first is None:
        raise ReportError(f"{path}: no frame to write, expected at least one")
    size, count = np.shape(first), 0
    rate = Fraction(fps).limit_denominator(100_000)
    try:
        with (
            atomic_path(path, keep_suffix=True, error=ReportError) as temporary,
            closing(
                imageio.get_writer(
                    temporary,
                    format="FFMPEG",
                    mode="I",
                    fps=rate,
                    codec="libx264",
                    pixelformat="yuv420p",
                    quality=None,
                    macro_block_size=1,
                    ffmpeg_log_level="error",
                    output_params=ENCODER_OPTIONS,
                )
            ) as writer,
        ):
            for frame in chain([first], remaining):
                writer.append_data(_padded(frame, size, f"{path}: frame {count}"))
                count += 1
    except RuntimeError as e:
        raise ReportError(f"{path}: the encoder failed: {first_line(e)}") from e
    return count


def _padded(frame: Frame, size: tuple[int, ...], where: str) -> Frame:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ReportError(f"{where} is {frame.dtype} {frame.shape}, expected uint8 (height, width, 3)")
    if frame.shape != size:
        raise ReportError(f"{where} is {frame.shape}, expected {size} as in the first frame")
    return np.pad(frame, ((0, size[0] % 2), (0, size[1] % 2), (0, 0)), mode="edge")
