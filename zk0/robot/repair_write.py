"""Writing a data set as LeRobot v3.0 from the episodes of another one."""

import json
import shutil
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from zk0.records import ACTION, STATE
from zk0.robot.arrow_types import leaf, plain, with_leaf
from zk0.robot.check.contents import STATISTICS_PATH, Contents
from zk0.robot.check.format import ARROW_TYPES, DEFAULT_FEATURES
from zk0.robot.episodes import EPISODES_DIR, TASKS_PATH
from zk0.robot.info import INFO_PATH
from zk0.robot.repair_info import DATA_PATH, FILES_PER_CHUNK, VIDEO_PATH, copy_info, copy_statistics
from zk0.robot.repair_plan import KeptEpisode, Plan
from zk0.robot.repair_statistics import as_numbers, number_statistics
from zk0.robot.units import to_degrees

DATA_FILE_BYTES = 100 * 1024**2


@dataclass
class _Written:
    """What accumulates while episodes are written."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the episode table."""
    numbers: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    """Column -> its values by episode, for the statistics."""
    videos: dict[tuple[str, str], int] = field(default_factory=dict)
    """(camera, file of the original) -> number in the copy."""


def write_copy(contents: Contents, plan: Plan, target: Path) -> None:
    """Write what the plan says into an empty folder. Videos are copied byte for byte."""
    assert contents.info is not None
    tasks = _task_numbers(contents)
    written = _Written()
    _write_data(contents, plan, tasks, target, written)
    _copy_videos(contents, plan, target, written)
    _write_episode_table(target, written)
    frame = pd.DataFrame({"task_index": range(len(tasks))}, index=pd.Index(list(tasks), name="task"))
    pq.write_table(pa.Table.from_pandas(frame), target / TASKS_PATH)
    info = copy_info(contents, plan, [r["length"] for r in written.rows], len(tasks))
    _write_json(target / INFO_PATH, info)
    _write_json(target / STATISTICS_PATH, copy_statistics(contents, plan, written.numbers, list(written.videos)))


def _task_numbers(contents: Contents) -> dict[str, int]:
    """Task text -> its number in the copy, in the order of the table."""
    texts = [contents.tasks[t] for t in sorted(contents.tasks)] if contents.tasks else []
    return {text: number for number, text in enumerate(dict.fromkeys(texts))}


def _write_data(contents: Contents, plan: Plan, tasks: dict[str, int], target: Path, written: _Written) -> None:
    number, size, at = 0, 0, 0
    writer: Any = None
    source: tuple[str, Any] = ("", None)
    try:
        for index, kept in enumerate(plan.episodes):
            parts = []
            for file, positions in kept.rows:
                if source[0] != file:
                    with pq.ParquetFile(contents.folder.path(file)) as parquet:
                        source = (file, parquet.read(columns=list(plan.columns)))
                parts.append(source[1].take(positions))
            table = _episode_table(pa.concat_tables(parts), contents, plan, kept, tasks, (index, at))
            if writer is not None and size + table.nbytes > DATA_FILE_BYTES:
                writer.close()
                writer, number, size = None, number + 1, 0
            place = _place(number)
            if writer is None:
                path = target / DATA_PATH.format(**place)
                path.parent.mkdir(parents=True, exist_ok=True)
                writer = pq.ParquetWriter(path, table.schema, compression="snappy", use_dictionary=True)
            writer.write_table(table)
            size += table.nbytes
            written.rows.append(
                {
                    "episode_index": index,
                    "tasks": _texts_of(table, tasks),
                    "length": kept.length,
                    **{f"data/{k}": v for k, v in place.items()},
                    "dataset_from_index": at,
                    "dataset_to_index": at + kept.length,
                }
            )
            for name in table.column_names:
                if (values := as_numbers(table[name])) is not None:
                    written.numbers[name].append(values)
            at += kept.length
    finally:
        if writer is not None:
            writer.close()


def _episode_table(
    table: Any, contents: Contents, plan: Plan, kept: KeptEpisode, tasks: dict[str, int], place: tuple[int, int]
) -> Any:
    """One episode's rows as they are in the copy."""
    assert contents.info is not None
    index, start = place
    length = kept.length
    columns: dict[str, Any] = {}
    for old in plan.columns:
        name = plan.renames.get(old, old)
        column = plain(table[old])
        if plan.units is not None and name in (STATE, ACTION):
            stored = as_numbers(column)
            assert stored is not None  # the check read these columns as numbers
            numbers = to_degrees(stored, plan.units, plan.percent)
            column = pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), numbers.shape[1])
        feature = contents.info.features.get(old)
        columns[name] = _cast(column, DEFAULT_FEATURES.get(name, feature.dtype if feature else ""))
    frames = np.arange(length)
    if not kept.keeps_timestamps:
        columns["timestamp"] = pa.array((frames / contents.info.fps).astype(np.float32))
    columns["task_index"] = pa.array(_task_column(columns.get("task_index"), contents, kept, tasks))
    columns["frame_index"] = pa.array(frames)
    columns["episode_index"] = pa.array(np.full(length, index))
    columns["index"] = pa.array(frames + start)
    ordered = [c for c in columns if c not in DEFAULT_FEATURES] + list(DEFAULT_FEATURES)
    return pa.table({c: columns[c] for c in ordered})


def _cast(column: Any, dtype: str) -> Any:
    """A column with its values in the declared type, its lists as they are."""
    wanted = ARROW_TYPES.get(dtype)
    if wanted is None or str(leaf(column.type)) == wanted:
        return column
    value = {"float": pa.float32(), "double": pa.float64(), "bool": pa.bool_()}.get(wanted) or pa.type_for_alias(wanted)
    return column.cast(with_leaf(column.type, value), safe=False)


def _task_column(stored: Any, contents: Contents, kept: KeptEpisode, tasks: dict[str, int]) -> Any:
    """Task numbers of the copy, from the stored ones or from what the episode table says."""
    if stored is None:
        text = kept.entry.tasks[0] if kept.entry.tasks else next(iter(tasks))
        return np.full(kept.length, tasks.get(text, 0))
    assert contents.tasks is not None
    number = {old: tasks[text] for old, text in contents.tasks.items()}
    return np.asarray([number[int(t)] for t in as_numbers(stored)[:, 0]], dtype=np.int64)  # type: ignore[index]


def _texts_of(table: Any, tasks: dict[str, int]) -> list[str]:
    texts = list(tasks)
    return [texts[t] for t in np.unique(table["task_index"].to_numpy())]


def _copy_videos(contents: Contents, plan: Plan, target: Path, written: _Written) -> None:
    assert contents.info is not None
    used: dict[str, int] = defaultdict(int)
    for row, kept in zip(written.rows, plan.episodes, strict=True):
        for key, clip in kept.entry.clips.items():
            name = plan.renames.get(key, key)
            if (key, clip.file) not in written.videos:
                written.videos[key, clip.file] = used[key]
                used[key] += 1
                path = target / VIDEO_PATH.format(video_key=name, **_place(written.videos[key, clip.file]))
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(contents.folder.path(clip.file), path)
            for field_name, value in _place(written.videos[key, clip.file]).items():
                row[f"videos/{name}/{field_name}"] = value
            row[f"videos/{name}/from_timestamp"] = clip.start_seconds
            row[f"videos/{name}/to_timestamp"] = clip.start_seconds + kept.length / contents.info.fps


def _write_episode_table(target: Path, written: _Written) -> None:
    for number, row in enumerate(written.rows):
        for column, parts in written.numbers.items():
            row |= {f"stats/{column}/{k}": v for k, v in number_statistics(parts[number]).items()}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
    path = target / EPISODES_DIR / "chunk-000" / "file-000.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(written.rows), path)


def _place(number: int) -> dict[str, int]:
    return {"chunk_index": number // FILES_PER_CHUNK, "file_index": number % FILES_PER_CHUNK}


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")
