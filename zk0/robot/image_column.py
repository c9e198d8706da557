"""A camera that is stored as pictures inside parquet rather than as video."""

import io
from collections.abc import Container, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from zk0.robot.folder import BrokenFile, Folder, first_line

ROWS_AT_ONCE = 32


def read_pictures(
    folder: Folder, file: str, key: str, every: int = 1, rows: Container[int] | None = None
) -> Iterator[tuple[int, NDArray[np.uint8] | str]]:
    """Row number and picture (H, W, 3) of every n-th row, or of some rows; where one does not decode, why.

    Raises:
        BrokenFile: the file or the column cannot be read.
    """
    row = 0
    try:
        with pq.ParquetFile(folder.path(file), memory_map=False) as parquet:
            for batch in parquet.iter_batches(batch_size=ROWS_AT_ONCE, columns=[key]):
                for value in batch.column(0).to_pylist():
                    if row % every == 0 and (rows is None or row in rows):
                        yield row, _decode(value)
                    row += 1
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as e:
        raise BrokenFile(f"{file} {key}", f"a column that cannot be read ({first_line(e)})", "pictures") from e


def _decode(value: Any) -> NDArray[np.uint8] | str:
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes) or not content:
        return "no picture"
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as e:
        return first_line(e)
