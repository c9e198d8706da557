"""One video of a dataset: its frame times without decoding, a full decode for the check, and single frames."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorRange
from numpy.typing import NDArray

from zk0.data.dataset_folder import BrokenFile, DatasetFolder, raise_if_passing
from zk0.data.picture_measures import SAMPLE_STEP, PictureMeter, PictureSequence
from zk0.errors import first_line

FULL_RANGE = np.clip(np.round((np.arange(256) - 16) * (255 / 219)), 0, 255).astype(np.uint8)
"""Luma of limited range, where 16 is black and 235 white (ITU-R BT.601), on the scale of images: 0 to 255."""


@dataclass(frozen=True)
class VideoFile:
    """Size and frame times of a video, from its container."""

    file: str
    """Path relative to the dataset's folder."""
    width: int
    height: int
    seconds: NDArray[np.float64]
    """(frames,) presentation times, sorted."""

    @property
    def fps(self) -> float | None:
        """Frames per second, from the median time step; None with fewer than two frames."""
        step = float(np.median(np.diff(self.seconds))) if len(self.seconds) > 1 else 0.0
        return 1 / step if step > 0 else None

    @property
    def mean_fps(self) -> float | None:
        """Frames per second from the first to the last frame; None with fewer than two frames."""
        duration = float(self.seconds[-1] - self.seconds[0]) if len(self.seconds) > 1 else 0.0
        return (len(self.seconds) - 1) / duration if duration > 0 else None


@dataclass(frozen=True)
class DecodedVideo:
    """Number and measures of a video's frames, from decoding all of them."""

    frames: int
    pictures: PictureSequence
    """In the order of presentation."""


def probe_video(folder: DatasetFolder, file: str) -> VideoFile:
    """Read size and frame times of a video from its packets, without decoding.

    Raises:
        BrokenFile: the file is missing, empty, or not a video.
    """
    try:
        with av.open(str(folder.file_path(file))) as container:
            stream = _stream(container, file)
            base = stream.time_base or Fraction(1)
            ticks = [p.pts for p in container.demux(stream) if p.pts is not None]
            return VideoFile(
                file=file,
                width=stream.width,
                height=stream.height,
                seconds=np.sort(np.asarray(ticks, dtype=np.float64)) * float(base),
            )
    except (FFmpegError, OSError, ValueError, MemoryError) as e:
        raise_if_passing(e, file)
        raise BrokenFile(file, f"a file that is not a readable video ({first_line(e, 120)})", "mp4") from e


def decode_video(folder: DatasetFolder, file: str, count: Callable[[], None] = lambda: None) -> DecodedVideo:
    """Decode every frame once, in order, on one thread; call `count` after each.

    Raises:
        BrokenFile: a frame does not decode; names the frame.
    """
    frames, meter = 0, PictureMeter()
    try:
        with av.open(str(folder.file_path(file))) as container:
            stream = _stream(container, file)
            stream.thread_type = "NONE"
            stream.codec_context.options = {"err_detect": "explode"}
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise BrokenFile(file, f"frame {frame.pts} of the stream is corrupt", "frames that decode")
                meter.add(_luma_lines(frame))
                frames += 1
                count()
    except (FFmpegError, OSError, ValueError, MemoryError, IndexError) as e:
        raise_if_passing(e, file)
        raise BrokenFile(file, f"{first_line(e, 120)} after {frames} frames", "frames that decode") from e
    return DecodedVideo(frames, meter.sequence())


def read_frame_at(folder: DatasetFolder, file: str, seconds: float) -> NDArray[np.uint8]:
    """Return (H, W, 3) RGB: the first frame at or after a time, with a tolerance of half a millisecond.

    Raises:
        BrokenFile: there is no such frame, or it does not decode.
    """
    try:
        with av.open(str(folder.file_path(file))) as container:
            stream = _stream(container, file)
            base = stream.time_base or Fraction(1)
            container.seek(max(int(seconds / base) - 1, 0), stream=stream, backward=True)
            for frame in container.decode(stream):
                if frame.pts is not None and float(frame.pts * base) >= seconds - 5e-4:
                    return frame.to_ndarray(format="rgb24")
    except (FFmpegError, OSError, ValueError, MemoryError, IndexError) as e:
        raise_if_passing(e, file)
        raise BrokenFile(file, first_line(e, 120), f"a frame at {seconds:.3f} s") from e
    raise BrokenFile(file, "no frame", f"a frame at {seconds:.3f} s")


def _stream(container: Any, file: str) -> Any:
    streams = container.streams.video
    if not streams or streams[0].codec_context is None:
        raise BrokenFile(file, "no video stream of a known codec", "a video")
    return streams[0]


def _luma_lines(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """Return every SAMPLE_STEP-th row of luma, 0 to 255, without a color conversion where that is possible."""
    if not frame.format.name.startswith(("yuv", "gray", "nv")) or frame.format.components[0].bits != 8:
        frame = frame.reformat(format="gray")
    plane = frame.planes[0]
    lines = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[::SAMPLE_STEP, : plane.width]
    is_full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith(("yuvj", "gray"))
    return lines if is_full else FULL_RANGE.take(lines)
