"""meta/stats.json of a repaired data set."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import av
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from zk0.robot.arrow_types import is_list, leaf, plain
from zk0.robot.folder import Folder
from zk0.robot.image_column import read_pictures

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
PICTURES_PER_VIDEO = 60


def number_statistics(values: NDArray[Any]) -> dict[str, list[Any]]:
    """Moments and quantiles of rows (frames, dims), as LeRobot names them; ddof 0."""
    exact = np.asarray(values, dtype=np.float64)
    return {
        "min": exact.min(axis=0).tolist(),
        "max": exact.max(axis=0).tolist(),
        "mean": exact.mean(axis=0).tolist(),
        "std": exact.std(axis=0).tolist(),
        "count": [len(exact)],
        **{name: np.quantile(exact, q, axis=0).tolist() for name, q in QUANTILES.items()},
    }


def picture_statistics(pictures: Iterable[NDArray[np.uint8]]) -> dict[str, list[Any]] | None:
    """Moments per colour, 0 to 1, shape (3, 1, 1), over pictures (H, W, 3); None if there are none."""
    count, pixels_seen = 0, 0
    total, squares = np.zeros(3), np.zeros(3)
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for picture in pictures:
        pixels = picture[::4, ::4].reshape(-1, 3) / 255.0
        count, pixels_seen = count + 1, pixels_seen + len(pixels)
        total += pixels.sum(axis=0)
        squares += (pixels**2).sum(axis=0)
        low, high = np.minimum(low, pixels.min(axis=0)), np.maximum(high, pixels.max(axis=0))
    if not count:
        return None
    mean = total / pixels_seen
    std = np.sqrt(np.maximum(squares / pixels_seen - mean**2, 0))
    moments = {"min": low, "max": high, "mean": mean, "std": std}
    return {k: v.reshape(3, 1, 1).tolist() for k, v in moments.items()} | {"count": [count]}


def video_pictures(folder: Folder, files: Iterable[str]) -> Iterator[NDArray[np.uint8]]:
    """Evenly spaced frames of some videos."""
    for file in files:
        with av.open(str(folder.path(file))) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            every = max(1, (stream.frames or PICTURES_PER_VIDEO) // PICTURES_PER_VIDEO)
            for number, frame in enumerate(container.decode(stream)):
                if number % every == 0:
                    yield frame.to_ndarray(format="rgb24")


def stored_pictures(folder: Folder, files: Iterable[str], key: str, rows: int) -> Iterator[NDArray[np.uint8]]:
    """Evenly spaced pictures of a camera that is stored in parquet, `rows` in all files together."""
    for file in files:
        for _, picture in read_pictures(folder, file, key, every=max(1, rows // PICTURES_PER_VIDEO)):
            if not isinstance(picture, str):
                yield picture


def well_formed_picture_statistics(stated: Any) -> bool:
    """Whether moments of a camera are there, one for each colour."""
    if not isinstance(stated, Mapping):
        return False
    try:
        parts = [np.asarray(stated.get(k), dtype=np.float64) for k in ("mean", "std", "min", "max")]
    except (TypeError, ValueError):
        return False
    return all(p.shape == (3, 1, 1) and bool(np.isfinite(p).all()) for p in parts)


def as_numbers(column: Any) -> NDArray[Any] | None:
    """A table's column as (rows, numbers); None if it holds anything else, or nothing."""
    rows, kind = len(column), leaf(column.type)
    if not rows or not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        return None
    column = plain(column) if isinstance(column, pa.ChunkedArray) else column
    while is_list(column.type):
        column = pa.compute.list_flatten(column)
    values: NDArray[Any] = np.asarray(column.to_numpy(), dtype=np.float64)
    return values.reshape(rows, -1) if values.size and values.size % rows == 0 else None
