"""The numbers of a data set's frames, straight from parquet: no LeRobot, no video."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from zk0.errors import DatasetError
from zk0.records import ACTION, STATE
from zk0.robot.arrow_types import is_list, leaf, plain
from zk0.robot.folder import BrokenFile, Folder, first_line, list_folder

INDEX_COLUMNS = ("episode_index", "frame_index", "index", "task_index")
MAX_FRAME_BYTES = 16 * 1024**3


@dataclass(frozen=True)
class Frames:
    """Rows of one parquet file, in file order. A column that the file lacks is None."""

    file: str
    rows: int
    types: Mapping[str, str]
    """Every column -> type of its values, as arrow names it; the wanted ones and others."""
    episode_index: NDArray[np.int64] | None
    frame_index: NDArray[np.int64] | None
    index: NDArray[np.int64] | None
    task_index: NDArray[np.int64] | None
    timestamp: NDArray[np.float64] | None
    state: NDArray[Any] | None
    """(rows, dims), in the dtype it is stored in."""
    action: NDArray[Any] | None


@dataclass(frozen=True)
class EpisodeFrames:
    """States and actions of one episode, (frames, dims), in frame order and stored dtype."""

    state: NDArray[Any]
    action: NDArray[Any]


def read_frames(folder: Folder, file: str, state_key: str = STATE, action_key: str = ACTION) -> Frames:
    """The numbers of one parquet file.

    Raises:
        BrokenFile: the file cannot be read, or a column does not hold numbers of one width.
    """
    try:
        with pq.ParquetFile(folder.path(file), memory_map=False) as parquet:
            types = {field.name: str(leaf(field.type)) for field in parquet.schema_arrow}
            wanted = [c for c in (*INDEX_COLUMNS, "timestamp", state_key, action_key) if c in types]
            rows = parquet.metadata.num_rows
            if (size := _stored_bytes(parquet, wanted)) > MAX_FRAME_BYTES:
                raise BrokenFile(file, f"{size} bytes of numbers", f"at most {MAX_FRAME_BYTES} bytes")
            table = parquet.read(columns=wanted)
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as e:
        raise BrokenFile(file, f"a file that is no readable parquet ({first_line(e)})", "parquet") from e
    columns = {c: _column(table, c, file, rows) for c in wanted}
    for name in INDEX_COLUMNS:
        if name in columns:
            columns[name] = _whole_numbers(columns[name], f"{file} {name}")
    return Frames(
        file=file,
        rows=rows,
        types=types,
        timestamp=_flat(columns.get("timestamp")),
        state=_wide(columns.get(state_key)),
        action=_wide(columns.get(action_key)),
        **{name: columns.get(name) for name in INDEX_COLUMNS},
    )


def stored_episodes(root: Path) -> tuple[int, ...]:
    """The numbers of all episodes that have frames, ascending.

    Raises:
        DatasetError: there are none, or a file cannot be read.
    """
    folder = list_folder(root)
    tables = [read_frames(folder, file) for file in folder.under("data", ".parquet")]
    found = {int(e) for t in tables if t.episode_index is not None for e in np.unique(t.episode_index)}
    if not found:
        raise DatasetError(f"{root}: found no frame in data/; check the data set")
    return tuple(sorted(found))


def read_episodes(
    root: Path, episodes: Sequence[int], rename: Mapping[str, str] | None = None
) -> dict[int, EpisodeFrames]:
    """States and actions of these episodes, wherever in `data/` they are stored.

    `rename` maps feature keys of the data set to those of the contract.

    Raises:
        DatasetError: an episode is missing, or its frames are not 0 to n-1, each once.
    """
    keys = {new: old for old, new in (rename or {}).items()}
    folder = list_folder(root)
    wanted = np.unique(np.asarray(list(episodes), dtype=np.int64))
    parts: dict[int, list[tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]]] = {int(e): [] for e in wanted}
    for file in folder.under("data", ".parquet"):
        frames = read_frames(folder, file, keys.get(STATE, STATE), keys.get(ACTION, ACTION))
        if frames.episode_index is None or frames.state is None or frames.action is None:
            continue
        for episode in np.intersect1d(frames.episode_index, wanted):
            rows = np.flatnonzero(frames.episode_index == episode)
            order = np.arange(len(rows)) if frames.frame_index is None else frames.frame_index[rows]
            parts[int(episode)].append((order, frames.state[rows], frames.action[rows]))
    return {episode: _join(root, episode, found) for episode, found in parts.items()}


def _join(root: Path, episode: int, parts: list[tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]]) -> EpisodeFrames:
    if not parts:
        raise DatasetError(f"{root}: found no frame of episode {episode}; check the data set")
    frame_index = np.concatenate([p[0] for p in parts])
    order = np.argsort(frame_index, kind="stable")
    if not np.array_equal(frame_index[order], np.arange(len(order))):
        raise DatasetError(
            f"{root}: episode {episode}: found {len(order)} rows with frame_index {frame_index.min()} to "
            f"{frame_index.max()}, expected 0 to n-1, each once; check and repair the data set"
        )
    state, action = (np.concatenate([p[i] for p in parts])[order] for i in (1, 2))
    return EpisodeFrames(state=state, action=action)


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
    column = plain(table.column(name))
    width = 0
    if is_list(column.type):
        lengths = np.unique(pa.compute.list_value_length(column).to_numpy())
        if column.null_count or len(lengths) > 1:
            raise BrokenFile(f"{file} {name}", f"rows of widths {lengths[:5].tolist()}", "one width in all rows")
        width = int(lengths[0]) if len(lengths) else 0
        column = pa.compute.list_flatten(column)
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise BrokenFile(f"{file} {name}", f"values of type {column.type}", "numbers")
    values: NDArray[Any] = column.to_numpy()  # a null becomes NaN, which the check then finds
    if len(values) != rows * max(width, 1) or (name == "timestamp" and width > 1):
        raise BrokenFile(f"{file} {name}", f"{len(values)} numbers in {rows} rows", "as many in every row")
    return values.reshape(-1, width) if width else values


def _whole_numbers(values: NDArray[Any], where: str) -> NDArray[np.int64]:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or not np.all(np.isfinite(values)) or not np.all(values == np.floor(values)):
        raise BrokenFile(where, "values that are no whole numbers", "whole numbers")
    return values.astype(np.int64)


def _flat(values: NDArray[Any] | None) -> NDArray[np.float64] | None:
    return None if values is None else values.reshape(-1).astype(np.float64)


def _wide(values: NDArray[Any] | None) -> NDArray[Any] | None:
    return values[:, None] if values is not None and values.ndim == 1 else values
