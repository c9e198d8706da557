"""One mp4 of a data set: its frame times without decoding, and whether every frame decodes."""

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from zk0.robot.folder import BrokenFile, Folder, first_line

LUMA_EVERY = 15
"""Brightness is looked at in every so many frames."""


@dataclass(frozen=True)
class VideoFile:
    """What a video's container says, without decoding."""

    file: str
    width: int
    height: int
    seconds: NDArray[np.float64]
    """(frames,) presentation times, sorted."""

    @property
    def rate(self) -> float | None:
        """Pictures a second, from the median step; None with fewer than two."""
        step = float(np.median(np.diff(self.seconds))) if len(self.seconds) > 1 else 0.0
        return 1 / step if step > 0 else None


@dataclass(frozen=True)
class Decoded:
    """What decoding a whole video showed."""

    frames: int
    brightness: NDArray[np.float64]
    """(looked at,) mean luma 0 to 255."""
    change: NDArray[np.float64]
    """(looked at - 1,) mean absolute change of luma from one looked-at frame to the next."""


def read_video(folder: Folder, file: str) -> VideoFile:
    """Size, rate and frame times of a video; reads packets, decodes nothing.

    Raises:
        BrokenFile: it is missing, empty, or no video.
    """
    try:
        with av.open(str(folder.path(file))) as container:
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
        raise BrokenFile(file, f"a file that is no readable video ({first_line(e)})", "mp4") from e


def decode_video(folder: Folder, file: str) -> Decoded:
    """Decode every frame once, in order, on one thread.

    Raises:
        BrokenFile: a frame does not decode; says which.
    """
    frames, thumbs = 0, []
    try:
        with av.open(str(folder.path(file))) as container:
            stream = _stream(container, file)
            stream.thread_type = "NONE"
            stream.codec_context.options = {"err_detect": "explode"}
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise BrokenFile(file, f"frame {frame.pts} of the stream is corrupt", "frames that decode")
                if frames % LUMA_EVERY == 0:
                    thumbs.append(_luma(frame))
                frames += 1
    except (FFmpegError, OSError, ValueError, MemoryError, IndexError) as e:
        raise BrokenFile(file, f"{first_line(e)} after {frames} frames", "frames that decode") from e
    same = [(a, b) for a, b in pairwise(thumbs) if a.shape == b.shape]
    return Decoded(
        frames=frames,
        brightness=np.asarray([t.mean() for t in thumbs]),
        change=np.asarray([np.abs(a - b).mean() for a, b in same]),
    )


def picture_at(folder: Folder, file: str, seconds: float) -> NDArray[np.uint8]:
    """(H, W, 3): the first picture at or after a time, give or take half a millisecond.

    Raises:
        BrokenFile: there is none, or it does not decode.
    """
    try:
        with av.open(str(folder.path(file))) as container:
            stream = _stream(container, file)
            base = stream.time_base or Fraction(1)
            container.seek(max(int(seconds / base) - 1, 0), stream=stream, backward=True)
            for frame in container.decode(stream):
                if frame.pts is not None and float(frame.pts * base) >= seconds - 5e-4:
                    return frame.to_ndarray(format="rgb24")
    except (FFmpegError, OSError, ValueError, MemoryError, IndexError) as e:
        raise BrokenFile(file, first_line(e), f"a picture at {seconds:.3f} s") from e
    raise BrokenFile(file, "no picture", f"a picture at {seconds:.3f} s")


def _stream(container: Any, file: str) -> Any:
    streams = container.streams.video
    if not streams or streams[0].codec_context is None:
        raise BrokenFile(file, "no video stream of a known codec", "a video")
    return streams[0]


def _luma(frame: av.VideoFrame) -> NDArray[np.float32]:
    """Every eighth pixel of the brightness plane, without converting colours."""
    if not frame.format.name.startswith(("yuv", "gray", "nv")) or frame.format.components[0].bits != 8:
        frame = frame.reformat(format="gray")
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[::8, : plane.width : 8]
    return rows.astype(np.float32)
