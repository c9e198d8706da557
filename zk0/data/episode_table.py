"""The episode table and the task table of a LeRobot dataset.

v2.x stores them as JSON Lines, v3.0 as parquet; both become `EpisodeEntry` values here.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from string import Formatter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zk0.data.dataset_folder import BrokenFile, DatasetFolder, points_outside, raise_if_passing
from zk0.data.dataset_info import INFO_PATH, DatasetInfo
from zk0.data.parquet_errors import unreadable_parquet
from zk0.errors import first_line

EPISODES_DIR = "meta/episodes"
TASKS_PATH = "meta/tasks.parquet"
EPISODE_LINES, TASK_LINES = "meta/episodes.jsonl", "meta/tasks.jsonl"
EPISODE_STATISTICS_PATH = "meta/episodes_stats.jsonl"
"""Of v2.1; in v3 they are in the episode table."""
_SAFE_FORMAT = re.compile(r"(0?\d{1,2}d)?")  # a format such as 0999999999d would fill the memory


@dataclass(frozen=True)
class VideoClip:
    """The part of a video file that holds one camera's frames of one episode."""

    file: str
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True)
class EpisodeEntry:
    """The row of the episode table for one episode."""

    index: int
    length: int
    """Frames."""
    tasks: tuple[str, ...]
    """Task texts."""
    data_file: str
    """Parquet file that holds its frames, relative to the dataset's folder."""
    clips: Mapping[str, VideoClip]
    """Feature key of the camera -> clip."""
    from_index: int | None = None
    """First row of the episode in the dataset (`dataset_from_index`); None in v2.x."""
    to_index: int | None = None
    """Row after its last one (`dataset_to_index`); None in v2.x."""


def read_episode_table(folder: DatasetFolder, info: DatasetInfo) -> tuple[EpisodeEntry, ...]:
    """Read the entries of all episodes, in the order of the table.

    Raises:
        BrokenFile: the table is missing or unreadable, lacks a column, or names a path outside the folder.
    """
    if not info.is_v3:
        lines = folder.read_json_lines(EPISODE_LINES)
        return tuple(v2_entry(line, info, f"{EPISODE_LINES} line {n}") for n, line in enumerate(lines, 1))
    files = folder.files_under(EPISODES_DIR, ".parquet")
    if not files:
        raise BrokenFile(EPISODES_DIR, "no file", "a parquet table of episodes")
    present = {part for file in folder.sizes if file.endswith(".mp4") for part in file.split("/")}
    without = set(info.video_keys) - present
    return tuple(_v3_entry(row, info, without, f"{f} row {n}") for f in files for n, row in enumerate(_rows(folder, f)))


def read_task_table(folder: DatasetFolder, info: DatasetInfo) -> dict[int, str]:
    """Read task_index -> task text.

    Raises:
        BrokenFile: the table is missing or unreadable, or a row lacks the index or the text.
    """
    where = TASKS_PATH if info.is_v3 else TASK_LINES
    tasks: dict[int, str] = {}
    for row in _rows(folder, where) if info.is_v3 else folder.read_json_lines(where):
        text = (
            next((row[k] for k in ("task", "__index_level_0__") if k in row), None) if isinstance(row, dict) else None
        )
        if not isinstance(text, str) or not isinstance(row.get("task_index"), int):
            raise BrokenFile(where, f"{str(row)[:80]}", "a task_index and a task text in every row")
        tasks[row["task_index"]] = text
    return tasks


def read_episode_statistics(
    folder: DatasetFolder, info: DatasetInfo, keys: Sequence[str]
) -> dict[str, dict[int, dict[str, Any]]]:
    """Read the moments of some features by episode: feature -> episode -> name of a moment -> stored value.

    Episodes without any are missing; datasets before v2.1 have none.

    Raises:
        BrokenFile: the table is unreadable.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {key: {} for key in keys}
    read = _v3_statistics if info.is_v3 else _v2_statistics
    for episode, key, moments in read(folder, keys):
        if moments and isinstance(episode, int):
            found[key][episode] = moments
    return found


def _v3_statistics(folder: DatasetFolder, keys: Sequence[str]) -> Iterator[tuple[Any, str, dict[str, Any]]]:
    """Yield episode, feature and moments from the columns `stats/FEATURE/MOMENT` of the episode table."""
    prefixes = {key: f"stats/{key}/" for key in keys}
    wanted = tuple(prefixes.values())
    for file in folder.files_under(EPISODES_DIR, ".parquet"):
        for row in _rows(folder, file, lambda name: name == "episode_index" or name.startswith(wanted)):
            for key, prefix in prefixes.items():
                moments = {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}
                yield row.get("episode_index"), key, moments


def _v2_statistics(folder: DatasetFolder, keys: Sequence[str]) -> Iterator[tuple[Any, str, dict[str, Any]]]:
    """Yield episode, feature and moments from the lines of v2.1."""
    for line in folder.read_json_lines(EPISODE_STATISTICS_PATH) if EPISODE_STATISTICS_PATH in folder else ():
        stated = line.get("stats") if isinstance(line, dict) else None
        if not isinstance(stated, dict):
            continue
        for key in keys:
            if isinstance(stated.get(key), dict):
                yield line.get("episode_index"), key, stated[key]


def has_task_index(folder: DatasetFolder) -> bool:
    """Return whether the pandas index of meta/tasks.parquet is the column of the task texts.

    Raises:
        BrokenFile: the table is missing or unreadable.
    """
    try:
        stored = pq.read_schema(folder.file_path(TASKS_PATH)).pandas_metadata
    except (pa.ArrowException, OSError, ValueError) as e:
        raise_if_passing(e, TASKS_PATH)
        raise BrokenFile(TASKS_PATH, f"an unreadable schema ({first_line(e, 120)})", "parquet") from e
    index = stored.get("index_columns", []) if isinstance(stored, dict) else []
    return index in (["task"], ["__index_level_0__"])


def _is_no_statistic(column: str) -> bool:
    return not column.startswith("stats/")


def _rows(
    folder: DatasetFolder, file: str, is_wanted: Callable[[str], bool] = _is_no_statistic
) -> list[dict[str, Any]]:
    try:
        with pq.ParquetFile(folder.file_path(file), memory_map=False) as parquet:
            columns = [c for c in parquet.schema_arrow.names if is_wanted(c)]
            rows: list[dict[str, Any]] = parquet.read(columns=columns).to_pylist()
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as e:
        raise unreadable_parquet(folder, file, e) from e
    return rows


def _v3_entry(row: dict[str, Any], info: DatasetInfo, without_video: Set[str], where: str) -> EpisodeEntry:
    """The entry of a row; a camera without any video may lack its columns: the rule about such cameras tells."""

    def file(template: str | None, prefix: str, key: str = "") -> str:
        values = {name: _non_negative_int(row, f"{prefix}/{name}", where) for name in ("chunk_index", "file_index")}
        return _fill(template, {"video_key": key, **values}, where)

    def clip(key: str) -> VideoClip:
        prefix = f"videos/{key}"
        if key in without_video and not any(name.startswith(f"{prefix}/") for name in row):
            place = _fill(info.video_path, {"video_key": key, "chunk_index": 0, "file_index": 0}, where)
            edges = (_non_negative_int(row, f"dataset_{edge}_index", where) / info.fps for edge in ("from", "to"))
            return VideoClip(place, *edges)
        times = (_seconds(row, f"{prefix}/{edge}_timestamp", where) for edge in ("from", "to"))
        return VideoClip(file(info.video_path, prefix, key), *times)

    return EpisodeEntry(
        index=_non_negative_int(row, "episode_index", where),
        length=_non_negative_int(row, "length", where),
        tasks=_texts(row.get("tasks")),
        data_file=file(info.data_path, "data"),
        clips={key: clip(key) for key in info.video_keys},
        from_index=_non_negative_int(row, "dataset_from_index", where),
        to_index=_non_negative_int(row, "dataset_to_index", where),
    )


def v2_entry(row: Any, info: DatasetInfo, where: str) -> EpisodeEntry:
    """Return the entry of an object with episode_index, tasks and length; its files follow from the index.

    Raises:
        BrokenFile: the object lacks a value; names `where`.
    """
    if not isinstance(row, dict):
        raise BrokenFile(where, repr(row)[:80], "an object with episode_index, tasks and length")
    index, length = _non_negative_int(row, "episode_index", where), _non_negative_int(row, "length", where)
    chunk = index // info.chunks_size
    values = {"episode_index": index, "episode_chunk": chunk, "chunk_index": chunk}
    clips = {k: VideoClip(_fill(info.video_path, {**values, "video_key": k}, where), 0.0, length / info.fps)
             for k in info.video_keys}  # fmt: skip
    return EpisodeEntry(index, length, _texts(row.get("tasks")), _fill(info.data_path, values, where), clips)


def video_path(info: DatasetInfo, key: str, number: int) -> str:
    """Return the path of the n-th video of a camera in v3, counted from 0.

    Raises:
        BrokenFile: the path template of meta/info.json is malformed or leads outside the folder.
    """
    place = {"chunk_index": number // info.chunks_size, "file_index": number % info.chunks_size}
    return _fill(info.video_path, {"video_key": key, **place}, INFO_PATH)


def _non_negative_int(row: dict[str, Any], column: str, where: str) -> int:
    value = row.get(column)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BrokenFile(where, f"{column} {value!r}", "a whole number, 0 or more")
    return value


def _seconds(row: dict[str, Any], column: str, where: str) -> float:
    value = row.get(column)
    if not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise BrokenFile(where, f"{column} {value!r}", "seconds, 0 or more")
    return float(value)


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(t for t in value if isinstance(t, str)) if isinstance(value, list) else ()


def _fill(template: str | None, values: dict[str, Any], where: str) -> str:
    """Return the path that a template of meta/info.json stands for, if the template is harmless."""
    if template is None:
        raise BrokenFile(where, "no path template in meta/info.json", "data_path and video_path")
    wrong = BrokenFile("meta/info.json", f"path template {template[:80]!r}", f"placeholders {', '.join(values)}")
    try:
        parts = list(Formatter().parse(template))
    except ValueError as e:
        raise wrong from e
    fields = [(name, form or "") for _, name, form, _ in parts if name is not None]
    if any(name not in values or not _SAFE_FORMAT.fullmatch(form) for name, form in fields):
        raise wrong
    try:
        path = template.format(**values)
    except (KeyError, ValueError, IndexError, AttributeError) as e:
        raise wrong from e
    if points_outside(path):
        raise BrokenFile(where, f"path {path[:80]!r}", "a path inside the dataset's folder")
    return path
