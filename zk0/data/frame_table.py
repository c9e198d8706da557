"""The numeric columns of a dataset's frames, read from parquet without LeRobot and without video.

`read_frame_table` reads one file for the check; `collect_episodes` gathers the rows of some episodes from all files,
for the digests, the statistics and `EpisodeReader`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from zk0.data.arrow_types import innermost_type, is_list, unwrap_extension
from zk0.data.dataset_folder import BrokenFile, DatasetFolder, list_folder
from zk0.data.parquet_errors import unreadable_parquet
from zk0.errors import DatasetError
from zk0.records import ACTION, STATE

INDEX_COLUMNS = ("episode_index", "frame_index", "index", "task_index")
SUCCESS = "next.success"
"""Column of LeRobot's simulators and annotations: whether the task is done after this frame."""
MAX_FRAME_BYTES = 16 * 1024**3


@dataclass(frozen=True)
class FrameTable:
    """The rows of one parquet file, in file order. A column that the file lacks is None."""

    file: str
    """Path relative to the dataset's folder."""
    rows: int
    types: Mapping[str, str]
    """Every column of the file -> Arrow type of its innermost values."""
    episode_index: NDArray[np.int64] | None
    frame_index: NDArray[np.int64] | None
    index: NDArray[np.int64] | None
    task_index: NDArray[np.int64] | None
    timestamp: NDArray[np.float64] | None
    state: NDArray[Any] | None
    """(rows, dims), in the stored dtype."""
    action: NDArray[Any] | None
    """(rows, dims), in the stored dtype."""
    success: NDArray[np.bool_] | None = None
    """(rows,); missing labels count as false."""


@dataclass(frozen=True)
class EpisodeFrames:
    """The numbers of one episode, in frame order."""

    state: NDArray[Any]
    """(frames, dims), in the stored dtype."""
    action: NDArray[Any]
    """(frames, dims), in the stored dtype."""
    timestamp: NDArray[np.float64] | None = None
    """(frames,) seconds; None if a file has no such column."""
    task_index: NDArray[np.int64] | None = None
    """(frames,); None if a file has no such column."""


def read_frame_table(folder: DatasetFolder, file: str, state_key: str = STATE, action_key: str = ACTION) -> FrameTable:
    """Read the numeric columns of one parquet file.

    Args:
        folder: the dataset.
        file: path relative to the dataset's folder.
        state_key: the dataset's feature key for the state.
        action_key: the dataset's feature key for the action.

    Raises:
        BrokenFile: the file cannot be read, or a column does not hold numbers of one width.
    """
    try:
        with pq.ParquetFile(folder.file_path(file), memory_map=False) as parquet:
            types = {field.name: str(innermost_type(field.type)) for field in parquet.schema_arrow}
            wanted = [c for c in (*INDEX_COLUMNS, "timestamp", state_key, action_key) if c in types]
            rows = parquet.metadata.num_rows
            if (size := _stored_bytes(parquet, wanted)) > MAX_FRAME_BYTES:
                raise BrokenFile(file, f"{size} bytes of numbers", f"at most {MAX_FRAME_BYTES} bytes")
            table = parquet.read(columns=wanted)
            success = parquet.read(columns=[SUCCESS])[SUCCESS] if types.get(SUCCESS) == "bool" else None
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as e:
        raise unreadable_parquet(folder, file, e) from e
    columns = {c: _column(table, c, file, rows) for c in wanted}
    for name in INDEX_COLUMNS:
        if name in columns:
            columns[name] = _whole_numbers(columns[name], f"{file} {name}")
    return FrameTable(
        file=file,
        rows=rows,
        types=types,
        timestamp=_flat(columns.get("timestamp")),
        state=_wide(columns.get(state_key)),
        action=_wide(columns.get(action_key)),
        success=_flags(success),
        **{name: columns.get(name) for name in INDEX_COLUMNS},
    )


def stored_episodes(root: Path) -> tuple[int, ...]:
    """Return the indices of all episodes that have frames, ascending.

    Raises:
        DatasetError: there is no frame, or a file cannot be read.
    """
    folder = list_folder(root)
    tables = [read_frame_table(folder, file) for file in folder.files_under("data", ".parquet")]
    found = {int(e) for t in tables if t.episode_index is not None for e in np.unique(t.episode_index)}
    if not found:
        raise DatasetError(f"{root}: found no frame in data/; check the dataset")
    return tuple(sorted(found))


def read_episodes(
    root: Path, episodes: Sequence[int], rename: Mapping[str, str] | None = None
) -> dict[int, EpisodeFrames]:
    """Read states and actions of complete episodes, wherever in `data/` they are stored.

    Args:
        root: the dataset's folder.
        episodes: episode indices.
        rename: feature key in the dataset -> key in the contract.

    Raises:
        DatasetError: an episode is missing, or its frame_index values are not 0 to n-1, each once.
    """
    found = _collect(list_folder(root), episodes, rename)
    for episode in sorted(set(episodes)):
        _check_complete(root, episode, found.get(episode))
    return {episode: frames for episode, (_, frames) in found.items()}


def collect_episodes(
    root: Path, episodes: Sequence[int], rename: Mapping[str, str] | None = None
) -> dict[int, EpisodeFrames]:
    """Read the rows of these episodes as they are stored, sorted by frame_index; gaps and repeated frames stay.

    An episode without rows is missing in the result. `rename` as in `read_episodes`.

    Raises:
        DatasetError: a file cannot be read.
    """
    return {e: frames for e, (_, frames) in _collect(list_folder(root), episodes, rename).items()}


def _collect(
    folder: DatasetFolder, episodes: Sequence[int], rename: Mapping[str, str] | None
) -> dict[int, tuple[NDArray[np.int64], EpisodeFrames]]:
    """Return episode -> its frame_index values and its rows, both sorted by frame_index."""
    keys = {new: old for old, new in (rename or {}).items()}
    wanted = np.unique(np.asarray(list(episodes), dtype=np.int64))
    parts: dict[int, list[tuple[NDArray[np.int64], EpisodeFrames]]] = {}
    for file in folder.files_under("data", ".parquet"):
        table = read_frame_table(folder, file, keys.get(STATE, STATE), keys.get(ACTION, ACTION))
        if table.episode_index is None or table.state is None or table.action is None:
            continue
        for episode in np.intersect1d(table.episode_index, wanted):
            rows = np.flatnonzero(table.episode_index == episode)
            order = np.arange(len(rows)) if table.frame_index is None else table.frame_index[rows]
            times, tasks = _take(table.timestamp, rows), _take(table.task_index, rows)
            frames = EpisodeFrames(table.state[rows], table.action[rows], times, tasks)
            parts.setdefault(int(episode), []).append((order, frames))
    return {int(e): _join(parts[int(e)]) for e in wanted if int(e) in parts}


def _join(parts: list[tuple[NDArray[np.int64], EpisodeFrames]]) -> tuple[NDArray[np.int64], EpisodeFrames]:
    frame_index = np.concatenate([index for index, _ in parts])
    order = np.argsort(frame_index, kind="stable")
    frames = [part for _, part in parts]
    return frame_index[order], EpisodeFrames(
        state=np.concatenate([p.state for p in frames])[order],
        action=np.concatenate([p.action for p in frames])[order],
        timestamp=_concatenate([p.timestamp for p in frames], order),
        task_index=_concatenate([p.task_index for p in frames], order),
    )


def _take(values: NDArray[Any] | None, rows: NDArray[np.int64]) -> NDArray[Any] | None:
    return None if values is None else values[rows]


def _concatenate(parts: Sequence[NDArray[Any] | None], order: NDArray[np.int64]) -> NDArray[Any] | None:
    present = [p for p in parts if p is not None]
    return np.concatenate(present)[order] if len(present) == len(parts) else None


def _check_complete(root: Path, episode: int, found: tuple[NDArray[np.int64], EpisodeFrames] | None) -> None:
    if found is None:
        raise DatasetError(f"{root}: found no frame of episode {episode}; check the dataset")
    frame_index, _ = found
    if not np.array_equal(frame_index, np.arange(len(frame_index))):
        raise DatasetError(
            f"{root}: episode {episode}: found {len(frame_index)} rows with frame_index {frame_index.min()} to "
            f"{frame_index.max()}, expected 0 to n-1, each once; check and repair the dataset"
        )


def _stored_bytes(parquet: Any, columns: list[str]) -> int:
    metadata = parquet.metadata
    total = 0
    for group in range(metadata.num_row_groups):
        for place in range(metadata.row_group(group).num_columns):
            chunk = metadata.row_group(group).column(place)
            if any(chunk.path_in_schema == c or chunk.path_in_schema.startswith(f"{c}.list") for c in columns):
                total += int(chunk.total_uncompressed_size)
    return total


def _column(table: Any, name: str, file: str, rows: int) -> NDArray[Any]:
    column = unwrap_extension(table.column(name))
    width = 0
    if is_list(column.type):
        lengths = np.unique(pa.compute.list_value_length(column).to_numpy())
        if column.null_count or len(lengths) > 1:
            raise BrokenFile(f"{file} {name}", f"rows of widths {lengths[:5].tolist()}", "one width in all rows")
        width = int(lengths[0]) if len(lengths) else 0
        column = pa.compute.list_flatten(column)
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise BrokenFile(f"{file} {name}", f"values of type {column.type}", "numbers")
    values: NDArray[Any] = column.to_numpy()  # a null becomes NaN, which the check reports
    if len(values) != rows * max(width, 1) or (name == "timestamp" and width > 1):
        raise BrokenFile(f"{file} {name}", f"{len(values)} numbers in {rows} rows", "as many in every row")
    return values.reshape(-1, width) if width else values


def _whole_numbers(values: NDArray[Any], where: str) -> NDArray[np.int64]:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or not np.all(np.isfinite(values)) or not np.all(values == np.floor(values)):
        raise BrokenFile(where, "values that are not whole numbers", "whole numbers")
    return values.astype(np.int64)


def _flat(values: NDArray[Any] | None) -> NDArray[np.float64] | None:
    return None if values is None else values.reshape(-1).astype(np.float64)


def _flags(column: Any) -> NDArray[np.bool_] | None:
    """Return a column of truth values (rows,), also if each is a list of one; None without a column."""
    if column is None:
        return None
    plain = unwrap_extension(column)
    while is_list(plain.type):
        plain = pa.compute.list_flatten(plain)
    values: NDArray[np.bool_] = plain.fill_null(False).to_numpy().astype(bool)
    return values


def _wide(values: NDArray[Any] | None) -> NDArray[Any] | None:
    return values[:, None] if values is not None and values.ndim == 1 else values
