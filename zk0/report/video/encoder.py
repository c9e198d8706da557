"""Encode videos for common players: H.264, yuv420p, even sizes, at the frame rate of the data."""

import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain
from math import isfinite
from pathlib import Path

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe

from zk0.errors import EncoderEnded, ReportError, first_line
from zk0.report.video.canvas import Frame
from zk0.storage.atomic import atomic_path

ENCODER_OPTIONS = ("-crf", "23", "-preset", "veryfast", "-threads", "1", "-movflags", "+faststart")
ENCODER_ATTEMPTS = 2
"""An encoder that ends early, as when the system kills it for want of memory, is started again so often in all."""


def write_video(path: Path, draw_frames: Callable[[], Iterable[Frame]], fps: float) -> int:
    """Write an .mp4 atomically and return its number of frames.

    An odd width or height is padded by repeating the last column or row.

    Args:
        path: of the video.
        draw_frames: returns all frames, each (height, width, 3) uint8 RGB; called again where the encoder ends early.
        fps: frames per second.

    Raises:
        ReportError: there is no frame, frames differ in size or type, the rate is not positive, or the encoder fails.
    """
    if not (isfinite(fps) and fps > 0):
        raise ReportError(f"{path}: {fps} frames per second, expected a positive rate")
    if path.suffix != ".mp4":
        raise ReportError(f"{path}: ends in {path.suffix!r}, expected .mp4")
    rate = Fraction(fps).limit_denominator(100_000)
    for _ in range(ENCODER_ATTEMPTS - 1):
        with suppress(EncoderEnded):
            return _encode(path, draw_frames(), rate)
    return _encode(path, draw_frames(), rate)


def _encode(path: Path, frames: Iterable[Frame], rate: Fraction) -> int:
    """Write the video, and return its number of frames.

    Raises:
        EncoderEnded: the encoder ended before the video was complete.
        ReportError: there is no frame, or frames differ in size or type.
    """
    remaining = iter(frames)
    first = next(remaining, None)
    if first is None:
        raise ReportError(f"{path}: no frame to write, expected at least one")
    pictures = _even_sized(chain([first], remaining), np.shape(first), path)
    count, first = 0, next(pictures)
    with (
        atomic_path(path, keep_suffix=True, error=ReportError) as temporary,
        tempfile.TemporaryFile() as messages,
        subprocess.Popen(
            _command(temporary, first, rate),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=messages,
            process_group=0,  # Ctrl-C is for this process, which then ends the encoder
        ) as encoder,
    ):
        assert encoder.stdin is not None, "it is a pipe"
        try:
            for picture in chain([first], pictures):
                encoder.stdin.write(picture.tobytes())
                count += 1
        except BrokenPipeError:
            pass  # its exit status says why
        except BaseException:
            encoder.kill()
            raise
        with suppress(BrokenPipeError):
            encoder.stdin.close()
        if code := encoder.wait():
            messages.seek(0)
            raise EncoderEnded(f"{path}: {_why_ended(code, messages.read().decode(errors='replace'))}")
    return count


def _command(path: Path, picture: Frame, rate: Fraction) -> list[str]:
    height, width = picture.shape[:2]
    source = ["-f", "rawvideo", "-vcodec", "rawvideo", "-s", f"{width}x{height}", "-pix_fmt", "rgb24", "-r", str(rate)]
    target = ["-an", "-vcodec", "libx264", "-pix_fmt", "yuv420p", "-v", "error", *ENCODER_OPTIONS, str(path)]
    try:
        return [get_ffmpeg_exe(), "-y", *source, "-i", "-", *target]
    except RuntimeError as e:
        raise ReportError(f"{path}: no video encoder: {first_line(e)}") from e


def _why_ended(code: int, messages: str) -> str:
    """Return how the encoder ended, with the last line that it wrote.

    >>> _why_ended(-9, ""), _why_ended(1, "Error opening output\\nInvalid argument\\n")
    ('the encoder was ended by SIGKILL', 'the encoder failed with status 1: Invalid argument')
    """
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with status {code}"
    lines = messages.split("\n") if (messages := messages.strip()) else []
    return f"the encoder {how}{''.join(f': {line}' for line in lines[-1:])}"


def _even_sized(frames: Iterable[Frame], size: tuple[int, ...], path: Path) -> Iterator[Frame]:
    for number, frame in enumerate(frames):
        where = f"{path}: frame {number}"
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ReportError(f"{where} is {frame.dtype} {frame.shape}, expected uint8 (height, width, 3)")
        if frame.shape != size:
            raise ReportError(f"{where} is {frame.shape}, expected {size} as in the first frame")
        yield np.pad(frame, ((0, size[0] % 2), (0, size[1] % 2), (0, 0)), mode="edge")
