"""Frames of films: an attempt in the simulator, and what a policy predicts beside what was recorded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zk0.errors import ReportError
from zk0.report.canvas import ACTION_COLOUR, MUTED, PREDICTION_COLOUR, STATE_COLOUR, Canvas, Frame, Scene, trace
from zk0.report.palette import DARK


@dataclass(frozen=True)
class Attempt:
    """What one closed-loop attempt left behind, as plain arrays.

    images: camera name -> T frames, each (height, width, 3) uint8 RGB.
    states: (T, joints), degrees (gripper 0-100). actions: (T or T - 1, joints), same units.
    """

    images: Mapping[str, Sequence[Frame]]
    states: NDArray[np.floating]
    actions: NDArray[np.floating]
    joints: Sequence[str]
    fps: float
    task: str
    seed: int
    success: bool


@dataclass(frozen=True)
class Prediction:
    """One recorded episode, and what a policy would do in each of its moments.

    images: camera name -> T frames, each (height, width, 3) uint8 RGB.
    recorded: (T, joints), degrees (gripper 0-100). predicted: (T, horizon, joints), same units: the chunk that the
    policy predicts in each frame.
    """

    images: Mapping[str, Sequence[Frame]]
    recorded: NDArray[np.floating]
    predicted: NDArray[np.floating]
    joints: Sequence[str]
    fps: float
    task: str
    episode: int
    note: str
    """What else is said of it: round, loss."""


def rollout_frames(attempt: Attempt, camera_height: int) -> Iterator[Frame]:
    """One frame (height, width, 3) uint8 RGB for each of the T observations; all have the same, even size.

    Raises:
        ReportError: the arrays do not fit together.
    """
    where = f"attempt at {attempt.task!r}, seed {attempt.seed}"
    legend = (("state", STATE_COLOUR), ("action", ACTION_COLOUR))
    scene = Scene(attempt.images, (attempt.states, attempt.actions), attempt.joints, attempt.task, legend)
    total, width = len(attempt.states), len(attempt.joints)
    if attempt.states.shape != (total, width) or attempt.actions.shape not in ((total, width), (total - 1, width)):
        raise ReportError(
            f"{where}: states {attempt.states.shape} and actions {attempt.actions.shape}, expected ({total}, {width})"
        )
    _check(scene, total, where)
    return _attempt(attempt, Canvas(scene, camera_height))


def prediction_frames(film: Prediction, camera_height: int) -> Iterator[Frame]:
    """One frame for each of the T moments: recorded actions, what was predicted so far, and the chunk predicted now.

    Raises:
        ReportError: the arrays do not fit together.
    """
    where = f"episode {film.episode} of {film.task!r}"
    legend = (("recorded", ACTION_COLOUR), ("predicted", PREDICTION_COLOUR))
    total, width = len(film.recorded), len(film.joints)
    if film.recorded.shape != (total, width) or film.predicted.shape[::2] != (total, width):
        raise ReportError(
            f"{where}: recorded {film.recorded.shape} and predicted {film.predicted.shape}, "
            f"expected ({total}, {width}) and ({total}, n, {width})"
        )
    series = (film.recorded, film.predicted.reshape(-1, width))
    scene = Scene(film.images, series, film.joints, film.task, legend)
    _check(scene, total, where)
    return _prediction(film, Canvas(scene, camera_height))


def _check(scene: Scene, total: int, where: str) -> None:
    scene.check(where)
    if scene.total != total:
        raise ReportError(f"{where}: {scene.total} frames for {total} moments, expected one for each")


def _attempt(attempt: Attempt, canvas: Canvas) -> Iterator[Frame]:
    total = len(attempt.states)
    for now in range(total):
        frame = canvas.frame(now)
        for index, panel in enumerate(canvas.panels):
            trace(frame, panel.points(attempt.actions[: now + 1, index], total), ACTION_COLOUR)
            trace(frame, panel.points(attempt.states[: now + 1, index], total), STATE_COLOUR)
        badge = ("running", DARK.muted)
        if now == total - 1:
            badge = ("success", DARK.good) if attempt.success else ("no success", DARK.bad)
        caption = _caption(attempt.images, f"seed {attempt.seed}", now, total, attempt.fps)
        yield canvas.captioned(frame, caption, badge)


def _prediction(film: Prediction, canvas: Canvas) -> Iterator[Frame]:
    total = len(film.recorded)
    for now in range(total):
        frame = canvas.frame(now)
        for index, panel in enumerate(canvas.panels):
            trace(frame, panel.points(film.recorded[:, index], total), MUTED, 1, dot=False)
            trace(frame, panel.points(film.recorded[: now + 1, index], total), ACTION_COLOUR)
            trace(frame, panel.points(film.predicted[: now + 1, 0, index], total), PREDICTION_COLOUR)
            ahead = film.predicted[now, : total - now, index]
            trace(frame, panel.points(ahead, total, first=now), PREDICTION_COLOUR, 1, dot=False)
        caption = _caption(film.images, f"episode {film.episode}  ·  {film.note}", now, total, film.fps)
        yield canvas.captioned(frame, caption)


def _caption(cameras: Mapping[str, Sequence[Frame]], what: str, now: int, total: int, fps: float) -> str:
    clock = f"{now / fps:.2f} of {(total - 1) / fps:.2f} s"
    return "  ·  ".join((" + ".join(cameras), what, clock))
