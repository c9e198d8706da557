"""What the films of a session show, measured in their pictures: how much moved, and how smoothly."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import imageio.v2 as imageio
import numpy as np

from zk0.errors import ReportError
from zk0.interval import wilson
from zk0.records import EpisodeFilm, Record, Rollout
from zk0.report.canvas import GAP, Frame, titled
from zk0.report.video import write_video
from zk0.report.write import write_bytes
from zk0.results import read_result
from zk0.smoothness import spectral_arc_length

ANALYSIS = "video_analysis.json"
_SIDE = 120
"""Pixels of a camera's height in which optical flow is computed."""


class FilmAnalysis(Record):
    """One film: what its result says, and what its pictures say."""

    video: str
    """Path relative to the analysed folder."""
    kind: str
    what: str
    """The task in closed loop, the data set in open loop."""
    client: str | None
    round: int | None
    number: int
    """The seed in closed loop, the episode in open loop."""
    success: bool | None
    duration_seconds: float
    frames: int
    policy_loss: float | None
    flow_pixels_per_frame: float | None
    """Mean length of the optical flow in the cameras' pictures; None with a single frame."""
    flow_smoothness: float | None
    """Spectral arc length of that flow over time: nearer to 0 is smoother."""


class RoundAnalysis(Record):
    """All films of one round."""

    round: int | None
    films: int
    attempts: int
    """Of the films, those in closed loop."""
    successes: int
    success_interval: tuple[float, float] | None
    """95 % Wilson; None without an attempt."""
    mean_duration_seconds: float
    mean_flow_smoothness: float | None


class VideoAnalysis(Record):
    """Content of video_analysis.json."""

    method: str = (
        "dense optical flow (Farneback 2003) between successive frames of the cameras' pictures at "
        f"{_SIDE} pixels of height; smoothness is the spectral arc length of its mean length over time"
    )
    rounds: tuple[RoundAnalysis, ...]
    films: tuple[FilmAnalysis, ...]
    side_by_side: tuple[str, ...]
    """Films of the same attempt or episode under several rounds, relative to the analysed folder."""


def analyse_videos(folder: Path) -> VideoAnalysis:
    """Measure every film below a folder, and put those of several rounds side by side; writes video_analysis.json.

    Raises:
        ReportError: there is no film, one cannot be read, or nothing can be written.
        EvaluationError: what is said of a film cannot be read.
    """
    results = [(path, read_result(path)) for path in sorted(folder.rglob("rollout_*.json"))]
    filmed = [(path.with_suffix(".mp4"), said) for path, said in results if said.video]
    if not filmed:
        raise ReportError(f"{folder}: no film of an attempt or an episode; expected rollout_*.mp4 with its .json")
    films = tuple(_analysed(video, said, folder) for video, said in filmed)
    rounds = dict.fromkeys(film.round for film in sorted(films, key=lambda f: -1 if f.round is None else f.round))
    found = VideoAnalysis(
        rounds=tuple(_round(number, [f for f in films if f.round == number]) for number in rounds),
        films=films,
        side_by_side=tuple(_compared(films, folder)),
    )
    write_bytes(folder / ANALYSIS, (found.model_dump_json(indent=2) + "\n").encode())
    return found


def flow_speeds(pictures: Sequence[Frame]) -> list[float]:
    """Mean length of the optical flow from each picture to the next, in pixels."""
    grey = [cv2.cvtColor(p, cv2.COLOR_RGB2GRAY) for p in pictures]
    speeds = []
    for one, other in pairwise(grey):
        flow = cv2.calcOpticalFlowFarneback(one, other, None, 0.5, 3, 15, 3, 5, 1.2, 0)
        speeds.append(float(np.linalg.norm(flow, axis=2).mean()))
    return speeds


def _analysed(video: Path, said: Rollout | EpisodeFilm, folder: Path) -> FilmAnalysis:
    rows = said.camera_rows
    pictures = [_small(frame[slice(*rows)] if rows else frame) for frame in read_video(video)]
    speeds = flow_speeds(pictures)
    what, number = (said.task, said.seed) if isinstance(said, Rollout) else (said.dataset, said.episode)
    return FilmAnalysis(
        video=str(video.relative_to(folder)),
        kind=said.kind,
        what=what,
        client=said.client,
        round=said.round,
        number=number,
        success=said.success,
        duration_seconds=said.duration_seconds,
        frames=len(pictures),
        policy_loss=said.policy_loss,
        flow_pixels_per_frame=float(np.mean(speeds)) if speeds else None,
        flow_smoothness=spectral_arc_length(np.array(speeds), said.fps),
    )


def _small(picture: Frame) -> Frame:
    width = round(picture.shape[1] * _SIDE / picture.shape[0])
    return np.asarray(cv2.resize(picture, (width, _SIDE), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _round(number: int | None, films: Sequence[FilmAnalysis]) -> RoundAnalysis:
    results = [f.success for f in films if f.success is not None]
    smooth = [f.flow_smoothness for f in films if f.flow_smoothness is not None]
    return RoundAnalysis(
        round=number,
        films=len(films),
        attempts=len(results),
        successes=sum(results),
        success_interval=wilson(sum(results), len(results)) if results else None,
        mean_duration_seconds=float(np.mean([f.duration_seconds for f in films])),
        mean_flow_smoothness=float(np.mean(smooth)) if smooth else None,
    )


def _compared(films: Sequence[FilmAnalysis], folder: Path) -> Iterator[str]:
    """Writes one film for whatever was filmed in more than one round."""
    subjects: dict[tuple[str, str, str | None, int], list[FilmAnalysis]] = {}
    for film in films:
        subjects.setdefault((film.kind, film.what, film.client, film.number), []).append(film)
    for (kind, what, client, number), same in subjects.items():
        rounds = {f.round: f for f in sorted(same, key=lambda f: (f.round is None, f.round))}
        if len(rounds) < 2:
            continue
        spoken = f"{client or what.split(':')[-1]}_{kind}_{number}"
        name = "".join(c if c.isalnum() or c in "-_" else "-" for c in spoken)
        target = folder / "side_by_side" / f"{name}.mp4"
        with_fps = [(f"round {n}", folder / f.video) for n, f in rounds.items()]
        write_video(target, side_by_side([(t, read_video(v)) for t, v in with_fps]), _fps(with_fps[0][1]))
        yield str(target.relative_to(folder))


def side_by_side(films: Sequence[tuple[str, Sequence[Frame]]]) -> Iterator[Frame]:
    """Frames of several films, each under its title; one that is over stands still."""
    height = max(frames[0].shape[0] for _, frames in films)
    for now in range(max(len(frames) for _, frames in films)):
        shots = []
        for title, frames in films:
            shot = frames[min(now, len(frames) - 1)]
            shots.append(titled(np.pad(shot, ((0, height - shot.shape[0]), (0, GAP), (0, 0))), title))
        yield np.concatenate(shots, axis=1)


def read_video(path: Path) -> list[Frame]:
    """All frames of a film, each (height, width, 3) RGB.

    Raises:
        ReportError: it cannot be read.
    """
    try:
        reader: Any = imageio.get_reader(path)
        with reader:
            return [np.asarray(frame) for frame in reader]
    except (OSError, ValueError, RuntimeError, IndexError) as e:
        said = next(iter(str(e).strip().splitlines()), type(e).__name__)
        raise ReportError(f"{path}: cannot be read ({said}); expected an mp4") from e


def _fps(path: Path) -> float:
    reader: Any = imageio.get_reader(path)
    with reader:
        return float(reader.get_meta_data()["fps"])
