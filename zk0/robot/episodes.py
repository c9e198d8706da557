"""The episode and task tables of a LeRobot data set, v2.0 to v3.0, as one kind of entry."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zk0.robot.folder import BrokenFile, Folder, first_line, leaves_folder
from zk0.robot.info import DatasetInfo

EPISODES_DIR = "meta/episodes"
TASKS_PATH = "meta/tasks.parquet"
EPISODE_LINES, TASK_LINES = "meta/episodes.jsonl", "meta/tasks.jsonl"
_PLAIN = re.compile(r"(0?\d{1,2}d)?")  # a format such as 0999999999d would fill the memory


@dataclass(frozen=True)
class Clip:
    """Where one camera's frames of one episode lie."""

    file: str
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True)
class EpisodeEntry:
    """What the metadata says about one episode."""

    index: int
    length: int
    tasks: tuple[str, ...]
    data_file: str
    clips: Mapping[str, Clip]
    """Feature key of the camera -> clip."""
    from_index: int | None = None
    to_index: int | None = None


def read_episode_table(folder: Folder, info: DatasetInfo) -> tuple[EpisodeEntry, ...]:
    """Every episode that the metadata lists, in the order listed.

    Raises:
        BrokenFile: the table is missing or unreadable, lacks a column, or names a path outside the folder.
    """
    if not info.is_v3:
        lines = folder.json_lines(EPISODE_LINES)
        return tuple(_v2_entry(line, info, f"{EPISODE_LINES} line {n}") for n, line in enumerate(lines, 1))
    files = folder.under(EPISODES_DIR, ".parquet")
    if not files:
        raise BrokenFile(EPISODES_DIR, "no file", "a parquet table of episodes")
    return tuple(_v3_entry(row, info, f"{f} row {n}") for f in files for n, row in enumerate(_rows(folder, f)))


def read_task_table(folder: Folder, info: DatasetInfo) -> dict[int, str]:
    """Task texts by task_index.

    Raises:
        BrokenFile: the table is missing, unreadable, or lacks index or text.
    """
    where = TASKS_PATH if info.is_v3 else TASK_LINES
    tasks: dict[int, str] = {}
    for row in _rows(folder, where) if info.is_v3 else folder.json_lines(where):
        text = (
            next((row[k] for k in ("task", "__index_level_0__") if k in row), None) if isinstance(row, dict) else None
        )
        if not isinstance(text, str) or not isinstance(row.get("task_index"), int):
            raise BrokenFile(where, f"{str(row)[:80]}", "a task_index and a task text in every row")
        tasks[row["task_index"]] = text
    return tasks


def _rows(folder: Folder, file: str) -> list[dict[str, Any]]:
    try:
        with pq.ParquetFile(folder.path(file), memory_map=False) as parquet:
            columns = [c for c in parquet.schema_arrow.names if not c.startswith("stats/")]
            rows: list[dict[str, Any]] = parquet.read(columns=columns).to_pylist()
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as e:
        raise BrokenFile(file, f"a file that is no readable parquet ({first_line(e)})", "parquet") from e
    return rows


def _v3_entry(row: dict[str, Any], info: DatasetInfo, where: str) -> EpisodeEntry:
    def file(template: str | None, prefix: str, key: str = "") -> str:
        places = {name: _whole(row, f"{prefix}/{name}", where) for name in ("chunk_index", "file_index")}
        return _fill(template, {"video_key": key, **places}, where)

    return EpisodeEntry(
        index=_whole(row, "episode_index", where),
        length=_whole(row, "length", where),
        tasks=_texts(row.get("tasks")),
        data_file=file(info.data_path, "data"),
        clips={
            key: Clip(
                file(info.video_path, f"videos/{key}", key),
                _seconds(row, f"videos/{key}/from_timestamp", where),
                _seconds(row, f"videos/{key}/to_timestamp", where),
            )
            for key in info.video_keys
        },
        from_index=_whole(row, "dataset_from_index", where),
        to_index=_whole(row, "dataset_to_index", where),
    )


def _v2_entry(row: Any, info: DatasetInfo, where: str) -> EpisodeEntry:
    if not isinstance(row, dict):
        raise BrokenFile(where, repr(row)[:80], "an object with episode_index, tasks and length")
    index, length = _whole(row, "episode_index", where), _whole(row, "length", where)
    chunk = index // info.chunks_size
    places = {"episode_index": index, "episode_chunk": chunk, "chunk_index": chunk}
    clips = {k: Clip(_fill(info.video_path, {**places, "video_key": k}, where), 0.0, length / info.fps)
             for k in info.video_keys}  # fmt: skip
    return EpisodeEntry(index, length, _texts(row.get("tasks")), _fill(info.data_path, places, where), clips)


def _whole(row: dict[str, Any], column: str, where: str) -> int:
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


def _fill(template: str | None, places: dict[str, Any], where: str) -> str:
    if template is None:
        raise BrokenFile(where, "no path template in meta/info.json", "data_path and video_path")
    wrong = BrokenFile("meta/info.json", f"path template {template[:80]!r}", f"placeholders {', '.join(places)}")
    try:
        parts = list(Formatter().parse(template))
    except ValueError as e:
        raise wrong from e
    if any(name is not None and (name not in places or not _PLAIN.fullmatch(form or "")) for _, name, form, _ in parts):
        raise wrong
    try:
        path = template.format(**places)
    except (KeyError, ValueError, IndexError, AttributeError) as e:
        raise wrong from e
    if leaves_folder(path):
        raise BrokenFile(where, f"path {path[:80]!r}", "a path inside the data set's folder")
    return path
