"""Results of attempts and films on disk: `rollout_YYYYMMDD_HHMMSS.json`, the film beside it with the same name."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from zk0.errors import EvaluationError
from zk0.records import EpisodeFilm, Rollout

_RESULT: TypeAdapter[Rollout | EpisodeFilm] = TypeAdapter(Annotated[Rollout | EpisodeFilm, Field(discriminator="kind")])


def read_result(path: Path) -> Rollout | EpisodeFilm:
    """What one file says.

    Raises:
        EvaluationError: it says nothing of an attempt or a film.
    """
    try:
        return _RESULT.validate_json(path.read_bytes())
    except (OSError, ValidationError) as e:
        fault = e.strerror if isinstance(e, OSError) else _first_fault(e)
        raise EvaluationError(f"{path}: not the result of an attempt or a film ({fault}); remove it") from e


def _first_fault(e: ValidationError) -> str:
    """The first thing that is wrong, with its place."""
    fault = e.errors(include_url=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    return f"{where}: {fault['msg']}" if where else str(fault["msg"])


def read_rollouts(folder: Path) -> list[Rollout]:
    """Every closed-loop attempt in a folder and below, by task, round and seed.

    Raises:
        EvaluationError: a result cannot be read.
    """
    found = [r for r in map(read_result, folder.rglob("rollout_*.json")) if isinstance(r, Rollout)]
    return sorted(found, key=lambda r: (r.task, -1 if r.round is None else r.round, r.seed))


def read_films(folder: Path) -> list[EpisodeFilm]:
    """Every film of a recorded episode in a folder and below, by data set, round and episode.

    Raises:
        EvaluationError: a result cannot be read.
    """
    found = [r for r in map(read_result, folder.rglob("rollout_*.json")) if isinstance(r, EpisodeFilm)]
    return sorted(found, key=lambda f: (f.dataset, f.round, f.episode))


def remove_halves(folder: Path) -> None:
    """Remove films without a result, which a killed process leaves."""
    for film in folder.glob("rollout_*.mp4"):
        if not film.with_suffix(".json").is_file():
            film.unlink()


def free_path(folder: Path, when: datetime) -> Path:
    """rollout_YYYYMMDD_HHMMSS.mp4, a second later wherever there is one already."""
    while (path := folder / f"rollout_{when:%Y%m%d_%H%M%S}.json").exists():
        when += timedelta(seconds=1)
    return path.with_suffix(".mp4")
