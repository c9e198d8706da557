"""Images of a camera that a dataset stores inside parquet instead of in a video."""

import io
from collections.abc import Container, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from zk0.data.dataset_folder import BrokenFile, DatasetFolder, raise_if_passing
from zk0.errors import first_line

ROWS_PER_BATCH = 32


def read_images(
    folder: DatasetFolder, file: str, key: str, every: int = 1, rows: Container[int] | None = None
) -> Iterator[tuple[int, NDArray[np.uint8] | str]]:
    """Yield row number and image (H, W, 3) RGB; if an image does not decode, the reason instead of the image.

    Args:
        folder: the dataset.
        file: a parquet file below data/.
        key: feature key of the camera.
        every: only every n-th row.
        rows: only these rows.

    Raises:
        BrokenFile: the file or the column cannot be read.
    """
    row = 0
    try:
        with pq.ParquetFile(folder.file_path(file), memory_map=False) as parquet:
            for batch in parquet.iter_batches(batch_size=ROWS_PER_BATCH, columns=[key]):
                for value in batch.column(0).to_pylist():
                    if row % every == 0 and (rows is None or row in rows):
                        yield row, _decode(value)
                    row += 1
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as e:
        raise_if_passing(e, file)
        raise BrokenFile(f"{file} {key}", f"a column that cannot be read ({first_line(e, 120)})", "images") from e


def _decode(value: Any) -> NDArray[np.uint8] | str:
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes) or not content:
        return "no image"
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as e:
        return first_line(e, 120)
