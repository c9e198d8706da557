"""Decode the frames of an episode in order, a few at a time."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import overload

import av
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray

FRAMES_AT_ONCE = 32
"""Frames of one camera that are decoded and encoded together; up to three times as many are in memory."""
RgbFrame = NDArray[np.uint8]
"""(3, height, width), RGB."""


def decode_frames(video: Path, seconds: Sequence[float], tolerance_seconds: float) -> Iterator[RgbFrame]:
    """Yield the frame nearest to each time; frames in between are decoded, but not converted.

    Args:
        video: the file.
        seconds: presentation times, increasing.
        tolerance_seconds: largest distance of a frame from its time.

    Raises:
        FFmpegError, OSError, ValueError, MemoryError, IndexError: the file cannot be decoded, or a time has no frame.
    """
    with av.open(str(video)) as container:
        yield from nearest_frames(container, seconds, tolerance_seconds)


def nearest_frames(container: InputContainer, seconds: Sequence[float], tolerance_seconds: float) -> Iterator[RgbFrame]:
    """Yield the frames of an open video as `decode_frames` does; it may have been read anywhere before."""
    stream = container.streams.video[0]
    base = stream.time_base
    if base is None:
        raise ValueError("no time base")
    container.seek(round(seconds[0] / base) - 1, stream=stream)
    decoded = ((float(frame.pts * base), frame) for frame in container.decode(stream) if frame.pts is not None)
    before, after = None, next(decoded, None)
    for wanted in seconds:
        while after is not None and after[0] < wanted:
            before, after = after, next(decoded, None)
        near = [one for one in (before, after) if one is not None]
        if not near:
            raise ValueError("found no frame")
        time, frame = min(near, key=lambda one: abs(one[0] - wanted))
        if abs(time - wanted) >= tolerance_seconds:
            raise ValueError(f"the frame nearest to {wanted:.4f} s is at {time:.4f} s")
        yield np.ascontiguousarray(frame.to_ndarray(format="rgb24").transpose(2, 0, 1))


def stack_pieces(frames: Iterator[RgbFrame]) -> Iterator[NDArray[np.uint8]]:
    """Yield pieces (n, 3, height, width) of `FRAMES_AT_ONCE` frames; the last one may be shorter."""
    piece: list[RgbFrame] = []
    for frame in frames:
        piece.append(frame)
        if len(piece) == FRAMES_AT_ONCE:
            yield np.stack(piece)
            piece = []
    if piece:
        yield np.stack(piece)


def compute_ahead[T](items: Iterator[T]) -> Iterator[T]:
    """Yield the items of an iterator; a thread computes the next one while the caller works with the last."""
    with ThreadPoolExecutor(1, "zk0-decode") as executor:
        following = executor.submit(lambda: list(islice(items, 1)))
        while found := following.result():
            following = executor.submit(lambda: list(islice(items, 1)))
            yield found[0]


class FrameSequence(Sequence[NDArray[np.uint8]]):
    """The images (height, width, 3) of one camera, decoded as they are read in order; one piece is in memory.

    Args:
        count: number of images.
        pieces: returns an iterator of pieces (n, 3, height, width), from the first frame on.
    """

    def __init__(self, count: int, pieces: Callable[[], Iterator[NDArray[np.uint8]]]) -> None:
        self._count, self._pieces = count, pieces
        self._rest: Iterator[NDArray[np.uint8]] = iter(())
        self._piece: NDArray[np.uint8] = np.empty((0, 3, 1, 1), np.uint8)
        self._first = 0

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, index: slice) -> list[NDArray[np.uint8]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not 0 <= index < self._count:
            raise IndexError(f"frame {index} of {self._count}")
        if index < self._first or not len(self._piece):
            self._rest, self._first = compute_ahead(self._pieces()), 0
            self._piece = next(self._rest)
        while index >= self._first + len(self._piece):
            self._first += len(self._piece)
            self._piece = next(self._rest)
        image: NDArray[np.uint8] = self._piece[index - self._first].transpose(1, 2, 0)
        return image
