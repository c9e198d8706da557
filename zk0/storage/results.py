"""Results of attempts and of episode videos on disk.

Each result is a JSON file `rollout_YYYYMMDD_HHMMSS.json`; its video, if there is one, has the same name and `.mp4`. The
result is written after the video, so a video without a result is unfinished.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from zk0.errors import EvaluationError
from zk0.records import EpisodeVideo, Rollout
from zk0.storage.listing import files_below

_RESULT: TypeAdapter[Rollout | EpisodeVideo] = TypeAdapter(
    Annotated[Rollout | EpisodeVideo, Field(discriminator="kind")]
)


def read_result(path: Path) -> Rollout | EpisodeVideo:
    """The result in one file.

    Raises:
        EvaluationError: the file cannot be read, or holds something else.
    """
    try:
        return _RESULT.validate_json(path.read_bytes())
    except (OSError, ValidationError) as e:
        fault = e.strerror if isinstance(e, OSError) else _first_fault(e)
        raise EvaluationError(f"{path}: not a result of an attempt or a video ({fault}); remove it") from e


def read_rollouts(folder: Path) -> list[Rollout]:
    """All closed-loop attempts in a folder and below it, by task, round and seed.

    Raises:
        EvaluationError: a result cannot be read.
        OSError: a folder cannot be listed.
    """
    found = [r for r in map(read_result, result_files(folder, ".json")) if isinstance(r, Rollout)]
    return sorted(found, key=lambda r: (r.task, -1 if r.round is None else r.round, r.seed))


def read_episode_videos(folder: Path) -> list[EpisodeVideo]:
    """All videos of recorded episodes in a folder and below it, by dataset, round and episode.

    Raises:
        EvaluationError: a result cannot be read.
        OSError: a folder cannot be listed.
    """
    found = [r for r in map(read_result, result_files(folder, ".json")) if isinstance(r, EpisodeVideo)]
    return sorted(found, key=lambda v: (v.dataset, v.round, v.episode))


def result_files(folder: Path, suffix: str) -> Iterator[Path]:
    """Yield the files `rollout_*` with this suffix in a folder and below it; none where there is no folder.

    Raises:
        OSError: a folder cannot be listed.
    """
    return (f for f in files_below(folder) if f.name.startswith("rollout_") and f.name.endswith(suffix))


def remove_unfinished_videos(folder: Path) -> None:
    """Remove the videos without a result, which a killed process left."""
    for video in folder.glob("rollout_*.mp4"):
        if not video.with_suffix(".json").is_file():
            video.unlink()


def unused_video_path(folder: Path, timestamp: datetime) -> Path:
    """Path `rollout_YYYYMMDD_HHMMSS.mp4` of a new video; seconds are added while there is a result of that name."""
    while (path := folder / f"rollout_{timestamp:%Y%m%d_%H%M%S}.json").exists():
        timestamp += timedelta(seconds=1)
    return path.with_suffix(".mp4")


def _first_fault(e: ValidationError) -> str:
    """The first invalid field and what is wrong with it."""
    fault = e.errors(include_url=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    return f"{where}: {fault['msg']}" if where else str(fault["msg"])
