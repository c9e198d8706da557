"""Statistics of columns and images as LeRobot's meta/stats.json has them, for a repaired copy."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import count, islice
from typing import Any

import av
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from zk0.data.arrow_types import innermost_type, is_list, unwrap_extension
from zk0.data.dataset_folder import DatasetFolder
from zk0.data.image_column import read_images

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
IMAGES_PER_VIDEO = 60


def column_statistics(values: NDArray[Any]) -> dict[str, list[Any]]:
    """Return moments (std with ddof 0) and quantiles of rows (frames, dims), under LeRobot's names."""
    exact = np.asarray(values, dtype=np.float64)
    return {
        "min": exact.min(axis=0).tolist(),
        "max": exact.max(axis=0).tolist(),
        "mean": exact.mean(axis=0).tolist(),
        "std": exact.std(axis=0).tolist(),
        "count": [len(exact)],
        **{name: np.quantile(exact, q, axis=0).tolist() for name, q in QUANTILES.items()},
    }


def image_statistics(images: Iterable[NDArray[np.uint8]]) -> dict[str, list[Any]] | None:
    """Return moments per color channel, 0 to 1, shape (3, 1, 1), over images (H, W, 3); None if there is no image."""
    count, pixel_count = 0, 0
    total, squares = np.zeros(3), np.zeros(3)
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for image in images:
        pixels = image[::4, ::4].reshape(-1, 3) / 255.0
        count, pixel_count = count + 1, pixel_count + len(pixels)
        total += pixels.sum(axis=0)
        squares += (pixels**2).sum(axis=0)
        low, high = np.minimum(low, pixels.min(axis=0)), np.maximum(high, pixels.max(axis=0))
    if not count:
        return None
    mean = total / pixel_count
    std = np.sqrt(np.maximum(squares / pixel_count - mean**2, 0))
    moments = {"min": low, "max": high, "mean": mean, "std": std}
    return {k: v.reshape(3, 1, 1).tolist() for k, v in moments.items()} | {"count": [count]}


def video_images(folder: DatasetFolder, files: Iterable[str]) -> Iterator[NDArray[np.uint8]]:
    """Yield about `IMAGES_PER_VIDEO` evenly spaced frames (H, W, 3) of each video.

    Only key frames are decoded, if there are enough of them.
    """
    for file in files:
        with av.open(str(folder.file_path(file))) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            flags = [bool(packet.is_keyframe) for packet in container.demux(stream) if packet.size]
            only_key = sum(flags) >= IMAGES_PER_VIDEO
            every = max(1, (sum(flags) if only_key else len(flags)) // IMAGES_PER_VIDEO)
            container.seek(0)
            for frame in islice(_frames(container, stream, only_key, every), 0, None, 1 if only_key else every):
                yield frame.to_ndarray(format="rgb24")


def _frames(container: Any, stream: Any, only_key: bool, every: int) -> Iterator[Any]:
    """Yield all frames, or every n-th of the key frames alone, whose packets need no other packet."""
    keys = count()
    for packet in container.demux(stream):
        if not only_key or not packet.size or (packet.is_keyframe and next(keys) % every == 0):
            yield from packet.decode()


def stored_images(folder: DatasetFolder, files: Iterable[str], key: str, rows: int) -> Iterator[NDArray[np.uint8]]:
    """Yield about `IMAGES_PER_VIDEO` evenly spaced images (H, W, 3) of a camera stored in parquet files.

    `rows` is the number of rows of all files together.
    """
    for file in files:
        for _, image in read_images(folder, file, key, every=max(1, rows // IMAGES_PER_VIDEO)):
            if not isinstance(image, str):
                yield image


def are_image_statistics(stated: Any) -> bool:
    """Return whether stated statistics of a camera are complete: finite, one value per color channel."""
    if not isinstance(stated, Mapping):
        return False
    try:
        parts = [np.asarray(stated.get(k), dtype=np.float64) for k in ("mean", "std", "min", "max")]
    except (TypeError, ValueError):
        return False
    return all(p.shape == (3, 1, 1) and bool(np.isfinite(p).all()) for p in parts)


def as_numbers(column: Any) -> NDArray[Any] | None:
    """Return a table's column as float64 (rows, numbers); None if it is empty or not numeric."""
    rows, kind = len(column), innermost_type(column.type)
    if not rows or not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        return None
    column = unwrap_extension(column) if isinstance(column, pa.ChunkedArray) else column
    while is_list(column.type):
        column = pa.compute.list_flatten(column)
    values: NDArray[Any] = np.asarray(column.to_numpy(), dtype=np.float64)
    return values.reshape(rows, -1) if values.size and values.size % rows == 0 else None
