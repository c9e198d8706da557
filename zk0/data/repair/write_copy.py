"""Write the copy that a repair plan describes, as a LeRobot v3.0 dataset."""

import json
import shutil
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from zk0.data.arrow_types import ARROW_TYPES, innermost_type, unwrap_extension, with_innermost_type
from zk0.data.check.contents import STATISTICS_PATH, Contents
from zk0.data.dataset_info import DEFAULT_FEATURES, INFO_PATH
from zk0.data.episode_table import EPISODES_DIR, TASKS_PATH
from zk0.data.repair.copy_metadata import DATA_PATH, FILES_PER_CHUNK, VIDEO_PATH, copy_info, copy_statistics
from zk0.data.repair.recompute_statistics import as_numbers, column_statistics
from zk0.data.repair.repair_plan import CopiedEpisode, RepairPlan
from zk0.data.repair.retime_video import retime_video
from zk0.data.units import to_degrees
from zk0.records import ACTION, STATE

DATA_FILE_BYTES = 100 * 1024**2
"""Size of a parquet file in memory after which a new one begins."""


@dataclass
class _CopyState:
    """What is collected while episodes are written, for the metadata."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the episode table."""
    values: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    """Column -> its values (frames, dims) of each episode, for the statistics."""
    videos: dict[tuple[str, str], int] = field(default_factory=dict)
    """(camera, file of the original) -> file number in the copy."""


def write_copy(contents: Contents, plan: RepairPlan, target: Path) -> None:
    """Write the planned copy into an empty folder. Videos are copied without encoding them again."""
    assert contents.info is not None
    tasks = _task_numbers(contents)
    state = _CopyState()
    _write_data(contents, plan, tasks, target, state)
    _copy_videos(contents, plan, target, state)
    _write_episode_table(target, state)
    frame = pd.DataFrame({"task_index": range(len(tasks))}, index=pd.Index(list(tasks), name="task"))
    pq.write_table(pa.Table.from_pandas(frame), target / TASKS_PATH)
    info = copy_info(contents, plan, [r["length"] for r in state.rows], len(tasks))
    _write_json(target / INFO_PATH, info)
    _write_json(target / STATISTICS_PATH, copy_statistics(contents, plan, state.values, list(state.videos)))


def _task_numbers(contents: Contents) -> dict[str, int]:
    """Return task text -> its number in the copy, in the order of the original's table."""
    texts = [contents.tasks[t] for t in sorted(contents.tasks)] if contents.tasks else []
    return {text: number for number, text in enumerate(dict.fromkeys(texts))}


class _DataWriter:
    """Writes tables below data/; a file ends before it exceeds `DATA_FILE_BYTES`, and where column types change."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._number, self._size = 0, 0
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def write(self, table: Any) -> dict[str, int]:
        """Append a table; return chunk_index and file_index of its file."""
        is_full = self._size + table.nbytes > DATA_FILE_BYTES
        if self._writer is not None and (is_full or self._writer.schema != table.schema):
            self._close()
            self._number, self._size = self._number + 1, 0
        place = _place(self._number)
        if self._writer is None:
            path = self._target / DATA_PATH.format(**place)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(path, table.schema, compression="snappy", use_dictionary=True)
        self._writer.write_table(table)
        self._size += table.nbytes
        return place

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _write_data(contents: Contents, plan: RepairPlan, tasks: dict[str, int], target: Path, state: _CopyState) -> None:
    start = 0
    source: tuple[str, Any] = ("", None)
    with _DataWriter(target) as writer:
        for index, episode in enumerate(plan.episodes):
            parts = []
            for file, positions in episode.rows:
                if source[0] != file:
                    with pq.ParquetFile(contents.folder.file_path(file)) as parquet:
                        source = (file, parquet.read(columns=list(plan.columns)))
                parts.append(source[1].take(positions))
            stored = pa.concat_tables(parts, promote_options="permissive").take(episode.order)
            table = _episode_table(stored, contents, plan, episode, tasks, (index, start))
            place = writer.write(table)
            state.rows.append(
                {
                    "episode_index": index,
                    "tasks": _task_texts(table, tasks),
                    "length": episode.length,
                    **{f"data/{k}": v for k, v in place.items()},
                    "dataset_from_index": start,
                    "dataset_to_index": start + episode.length,
                }
            )
            for name in table.column_names:
                if (values := as_numbers(table[name])) is not None:
                    state.values[name].append(values)
            start += episode.length


def _episode_table(
    table: Any,
    contents: Contents,
    plan: RepairPlan,
    episode: CopiedEpisode,
    tasks: dict[str, int],
    place: tuple[int, int],
) -> Any:
    """Return the rows of one episode as they are in the copy; `place` is its index and its first row there."""
    assert contents.info is not None
    index, start = place
    length = episode.length
    columns: dict[str, Any] = {}
    for old in plan.columns:
        name = plan.renames.get(old, old)
        column = unwrap_extension(table[old])
        if plan.units is not None and name in (STATE, ACTION):
            stored = as_numbers(column)
            assert stored is not None  # the check read these columns as numbers
            degrees = to_degrees(stored, plan.units, plan.unchanged)
            column = pa.FixedSizeListArray.from_arrays(pa.array(degrees.reshape(-1)), degrees.shape[1])
        feature = contents.info.features.get(old)
        columns[name] = _cast(column, DEFAULT_FEATURES.get(name, feature.dtype if feature else ""))
    frames = np.arange(length)
    if not episode.valid_timestamps:
        columns["timestamp"] = pa.array((frames / contents.fps).astype(np.float32))
    columns["task_index"] = pa.array(_task_column(columns.get("task_index"), contents, episode, tasks))
    columns["frame_index"] = pa.array(frames)
    columns["episode_index"] = pa.array(np.full(length, index))
    columns["index"] = pa.array(frames + start)
    ordered = [c for c in columns if c not in DEFAULT_FEATURES] + list(DEFAULT_FEATURES)
    return pa.table({c: columns[c] for c in ordered})


def _cast(column: Any, dtype: str) -> Any:
    """Return a column with its values in the declared type; its list types stay."""
    wanted = ARROW_TYPES.get(dtype)
    if wanted is None or str(innermost_type(column.type)) == wanted:
        return column
    value = {"float": pa.float32(), "double": pa.float64(), "bool": pa.bool_()}.get(wanted) or pa.type_for_alias(wanted)
    return column.cast(with_innermost_type(column.type, value), safe=False)


def _task_column(stored: Any, contents: Contents, episode: CopiedEpisode, tasks: dict[str, int]) -> NDArray[np.int64]:
    """Return the task numbers of the copy, from the stored column or, without one, from the episode table."""
    if stored is None:
        text = episode.entry.tasks[0] if episode.entry.tasks else next(iter(tasks))
        return np.full(episode.length, tasks.get(text, 0))
    values = as_numbers(stored)
    assert contents.tasks is not None
    assert values is not None
    number = {old: tasks[text] for old, text in contents.tasks.items()}
    return np.asarray([number[int(t)] for t in values[:, 0]], dtype=np.int64)


def _task_texts(table: Any, tasks: dict[str, int]) -> list[str]:
    texts = list(tasks)
    return [texts[t] for t in np.unique(table["task_index"].to_numpy())]


def _copy_videos(contents: Contents, plan: RepairPlan, target: Path, state: _CopyState) -> None:
    """Copy the videos of all episodes, each file once, and add their clips to the episode table."""
    assert contents.info is not None
    used: dict[str, int] = defaultdict(int)
    for row, episode in zip(state.rows, plan.episodes, strict=True):
        for key in episode.entry.clips:
            if key in contents.absent_cameras:
                continue
            clip = contents.clip(episode.entry, key)
            name = plan.renames.get(key, key)
            if (key, clip.file) not in state.videos:
                state.videos[key, clip.file] = used[key]
                used[key] += 1
                path = target / VIDEO_PATH.format(video_key=name, **_place(state.videos[key, clip.file]))
                path.parent.mkdir(parents=True, exist_ok=True)
                if clip.file in contents.places.retimed:
                    retime_video(contents.folder, clip.file, path, contents.fps)
                else:
                    shutil.copyfile(contents.folder.file_path(clip.file), path)
            for field_name, value in _place(state.videos[key, clip.file]).items():
                row[f"videos/{name}/{field_name}"] = value
            row[f"videos/{name}/from_timestamp"] = clip.start_seconds
            row[f"videos/{name}/to_timestamp"] = clip.start_seconds + episode.length / contents.fps


def _write_episode_table(target: Path, state: _CopyState) -> None:
    for number, row in enumerate(state.rows):
        for column, parts in state.values.items():
            row |= {f"stats/{column}/{k}": v for k, v in column_statistics(parts[number]).items()}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
    path = target / EPISODES_DIR / "chunk-000" / "file-000.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(state.rows), path)


def _place(number: int) -> dict[str, int]:
    """Return chunk_index and file_index of the n-th file."""
    return {"chunk_index": number // FILES_PER_CHUNK, "file_index": number % FILES_PER_CHUNK}


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")
