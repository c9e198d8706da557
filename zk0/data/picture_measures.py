"""Measures of a sequence of pictures: brightness, change from picture to picture, sharpness, and thumbnails."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAMPLE_STEP = 8
"""Brightness and change are measured in every n-th pixel of every n-th row."""
THUMBNAIL_SIDE = 8


@dataclass(frozen=True)
class PictureSequence:
    """Measures of consecutive pictures of one camera."""

    brightness: NDArray[np.float32]
    """(pictures,) mean luma, 0 to 255."""
    change: NDArray[np.float32]
    """(pictures,) mean absolute change of luma since the picture before; 0 for the first."""
    sharpness: NDArray[np.float32]
    """(pictures,) mean absolute difference of neighboring pixels."""
    thumbnails: NDArray[np.float32]
    """(pictures, THUMBNAIL_SIDE, THUMBNAIL_SIDE) luma."""

    def __len__(self) -> int:
        return len(self.brightness)

    def at(self, positions: NDArray[np.int64]) -> "PictureSequence":
        """Return the measures of these pictures; the change of the first one is 0."""
        change = self.change[positions]
        change[:1] = 0.0
        return PictureSequence(
            self.brightness[positions], change, self.sharpness[positions], self.thumbnails[positions]
        )


class PictureMeter:
    """Collects the measures of pictures that come one after the other."""

    def __init__(self) -> None:
        self._before: NDArray[np.float32] | None = None
        self._numbers: list[tuple[float, float, float]] = []
        self._thumbnails: list[NDArray[np.float32]] = []

    def add(self, luma: NDArray[np.uint8]) -> None:
        """Measure the next picture, luma (height, width)."""
        sample = luma[::SAMPLE_STEP, ::SAMPLE_STEP].astype(np.float32)
        before = self._before
        change = float(np.abs(sample - before).mean()) if before is not None and before.shape == sample.shape else 0.0
        lines = luma[::SAMPLE_STEP].astype(np.int16)
        sharpness = float(np.abs(np.diff(lines, axis=1)).mean()) if lines.shape[1] > 1 else 0.0
        self._numbers.append((float(sample.mean()), change, sharpness))
        self._thumbnails.append(_thumbnail(sample))
        self._before = sample

    def sequence(self) -> PictureSequence:
        """Return the measures of all pictures so far."""
        numbers = np.asarray(self._numbers, dtype=np.float32).reshape(-1, 3)
        side = (0, THUMBNAIL_SIDE, THUMBNAIL_SIDE)
        thumbnails = np.stack(self._thumbnails) if self._thumbnails else np.empty(side, dtype=np.float32)
        return PictureSequence(numbers[:, 0], numbers[:, 1], numbers[:, 2], thumbnails)


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
