"""Measures of a sequence of pictures: brightness, change since the picture before, contrast, sharpness, thumbnails."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAMPLE_STEP = 8
"""Brightness and change are measured in every n-th pixel of every n-th row."""
THUMBNAIL_SIDE = 8
LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)
"""Shares of red, green and blue in luma."""


@dataclass(frozen=True)
class PictureSequence:
    """Measures of consecutive pictures of one camera."""

    brightness: NDArray[np.float32]
    """(pictures,) mean luma, 0 to 255."""
    change: NDArray[np.float32]
    """(pictures,) mean absolute change of luma since the picture before; 0 for the first."""
    contrast: NDArray[np.float32]
    """(pictures,) mean absolute difference of neighboring pixels."""
    sharpness: NDArray[np.float32]
    """(pictures,) second differences of neighboring pixels over first ones, both root mean square; at most 2.

    An edge of any height that is spread evenly over n pixels has (2 / n) ** 0.5; contrast hardly tells n.
    """
    thumbnails: NDArray[np.float32]
    """(pictures, THUMBNAIL_SIDE, THUMBNAIL_SIDE) luma."""

    def __len__(self) -> int:
        return len(self.brightness)

    def at(self, positions: NDArray[np.int64]) -> "PictureSequence":
        """Return the measures of these pictures; the change of the first one is 0."""
        change = self.change[positions]
        change[:1] = 0.0
        return PictureSequence(
            self.brightness[positions],
            change,
            self.contrast[positions],
            self.sharpness[positions],
            self.thumbnails[positions],
        )


class PictureMeter:
    """Collects the measures of pictures that come one after the other."""

    def __init__(self) -> None:
        self._before: NDArray[np.float32] | None = None
        self._numbers: list[tuple[float, float, float, float]] = []
        self._thumbnails: list[NDArray[np.float32]] = []

    def add(self, lines: NDArray[np.uint8]) -> None:
        """Measure the next picture: every SAMPLE_STEP-th of its rows, luma (rows, width) from 0 (black) to 255."""
        sample = lines[:, ::SAMPLE_STEP].astype(np.float32)
        before = self._before
        change = float(np.abs(sample - before).mean()) if before is not None and before.shape == sample.shape else 0.0
        self._numbers.append((float(sample.mean()), change, *_edges(lines)))
        self._thumbnails.append(_thumbnail(sample))
        self._before = sample

    def sequence(self) -> PictureSequence:
        """Return the measures of all pictures so far."""
        brightness, change, contrast, sharpness = np.asarray(self._numbers, dtype=np.float32).reshape(-1, 4).T
        side = (0, THUMBNAIL_SIDE, THUMBNAIL_SIDE)
        thumbnails = np.stack(self._thumbnails) if self._thumbnails else np.empty(side, dtype=np.float32)
        return PictureSequence(brightness, change, contrast, sharpness, thumbnails)


def image_luma(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return luma (height, width), 0 to 255, of an image (height, width, 3) in RGB, as videos have it (ITU-R BT.601).

    >>> image_luma(np.array([[[255, 255, 255], [255, 0, 0], [0, 9, 0]]], np.uint8)).tolist()
    [[255, 76, 5]]
    """
    return np.round(image @ LUMA_WEIGHTS).astype(np.uint8)


def _edges(lines: NDArray[np.uint8]) -> tuple[float, float]:
    """Return contrast and sharpness of rows (rows, width); 0 where they have no edge."""
    first = np.diff(lines.astype(np.float32), axis=1)
    if not first.any():
        return 0.0, 0.0
    second = np.diff(first, axis=1)
    sharpness = float(np.sqrt((second * second).sum() / (first * first).sum()))
    return float(np.abs(first).mean()), sharpness


def _thumbnail(sample: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the means of THUMBNAIL_SIDE x THUMBNAIL_SIDE blocks; of a smaller picture, its nearest pixels."""
    for axis in (0, 1):
        edges = np.arange(THUMBNAIL_SIDE) * sample.shape[axis] // THUMBNAIL_SIDE
        if sample.shape[axis] < THUMBNAIL_SIDE:
            sample = sample.take(edges, axis=axis)
            continue
        sizes = np.diff(np.append(edges, sample.shape[axis]))
        sums = np.add.reduceat(sample, edges, axis=axis)
        sample = (sums / (sizes[:, None] if axis == 0 else sizes)).astype(np.float32)
    return sample
