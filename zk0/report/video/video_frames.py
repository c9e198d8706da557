"""Frames of the two kinds of videos: a closed-loop attempt, and predictions on a recorded episode."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zk0.errors import ReportError
from zk0.report.palette import DARK_THEME
from zk0.report.video.canvas import (
    ACTION_COLOR,
    MUTED,
    PREDICTION_COLOR,
    STATE_COLOR,
    Canvas,
    Frame,
    Scene,
    draw_trace,
)


@dataclass(frozen=True)
class AttemptRecording:
    """Observations and actions of one closed-loop attempt.

    Args:
        images: camera name -> T frames, each (height, width, 3) uint8 RGB.
        states: (T, joints), degrees (gripper 0-100).
        actions: (T or T - 1, joints), same units.
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
class PredictionRecording:
    """One recorded episode, and the action chunk that a policy predicts in each of its frames.

    Args:
        images: camera name -> T frames, each (height, width, 3) uint8 RGB.
        recorded: recorded actions, (T, joints), degrees (gripper 0-100).
        predicted: predicted chunks, (T, horizon, joints), same units.
    """

    images: Mapping[str, Sequence[Frame]]
    recorded: NDArray[np.floating]
    predicted: NDArray[np.floating]
    joints: Sequence[str]
    fps: float
    task: str
    episode: int
    note: str
    """Text of the caption: round and loss."""


def rollout_frames(attempt: AttemptRecording, camera_height: int) -> Iterator[Frame]:
    """One frame per observation, (height, width, 3) uint8 RGB, all of the same even size.

    Raises:
        ReportError: the shapes of the arrays do not match.
    """
    where = f"attempt at {attempt.task!r}, seed {attempt.seed}"
    legend = (("state", STATE_COLOR), ("action", ACTION_COLOR))
    scene = Scene(attempt.images, (attempt.states, attempt.actions), attempt.joints, attempt.task, legend)
    total, width = len(attempt.states), len(attempt.joints)
    if attempt.states.shape != (total, width) or attempt.actions.shape not in ((total, width), (total - 1, width)):
        raise ReportError(
            f"{where}: states {attempt.states.shape} and actions {attempt.actions.shape}, expected ({total}, {width})"
        )
    _check(scene, total, where)
    return _draw_attempt(attempt, Canvas(scene, camera_height))


def prediction_frames(episode: PredictionRecording, camera_height: int) -> Iterator[Frame]:
    """One frame per recorded frame: recorded actions, first predicted actions so far, and the chunk predicted now.

    Raises:
        ReportError: the shapes of the arrays do not match.
    """
    where = f"episode {episode.episode} of {episode.task!r}"
    legend = (("recorded", ACTION_COLOR), ("predicted", PREDICTION_COLOR))
    total, width = len(episode.recorded), len(episode.joints)
    if episode.recorded.shape != (total, width) or episode.predicted.shape[::2] != (total, width):
        raise ReportError(
            f"{where}: recorded {episode.recorded.shape} and predicted {episode.predicted.shape}, "
            f"expected ({total}, {width}) and ({total}, n, {width})"
        )
    series = (episode.recorded, episode.predicted.reshape(-1, width))
    scene = Scene(episode.images, series, episode.joints, episode.task, legend)
    _check(scene, total, where)
    return _draw_prediction(episode, Canvas(scene, camera_height))


def _check(scene: Scene, total: int, where: str) -> None:
    scene.check(where)
    if scene.frame_count != total:
        raise ReportError(f"{where}: {scene.frame_count} frames for {total} time steps, expected one for each")


def _draw_attempt(attempt: AttemptRecording, canvas: Canvas) -> Iterator[Frame]:
    total = len(attempt.states)
    for now in range(total):
        frame = canvas.frame(now)
        for index, panel in enumerate(canvas.panels):
            draw_trace(frame, panel.points(attempt.actions[: now + 1, index], total), ACTION_COLOR)
            draw_trace(frame, panel.points(attempt.states[: now + 1, index], total), STATE_COLOR)
        badge = ("running", DARK_THEME.muted)
        if now == total - 1:
            badge = ("success", DARK_THEME.good) if attempt.success else ("no success", DARK_THEME.bad)
        caption = _caption(attempt.images, f"seed {attempt.seed}", now, total, attempt.fps)
        yield canvas.with_caption(frame, caption, badge)


def _draw_prediction(episode: PredictionRecording, canvas: Canvas) -> Iterator[Frame]:
    total = len(episode.recorded)
    for now in range(total):
        frame = canvas.frame(now)
        for index, panel in enumerate(canvas.panels):
            draw_trace(frame, panel.points(episode.recorded[:, index], total), MUTED, 1, dot=False)
            draw_trace(frame, panel.points(episode.recorded[: now + 1, index], total), ACTION_COLOR)
            draw_trace(frame, panel.points(episode.predicted[: now + 1, 0, index], total), PREDICTION_COLOR)
            ahead = episode.predicted[now, : total - now, index]
            draw_trace(frame, panel.points(ahead, total, first=now), PREDICTION_COLOR, 1, dot=False)
        caption = _caption(episode.images, f"episode {episode.episode}  ·  {episode.note}", now, total, episode.fps)
        yield canvas.with_caption(frame, caption)


def _caption(cameras: Mapping[str, Sequence[Frame]], subject: str, now: int, total: int, fps: float) -> str:
    clock = f"{now / fps:.2f} of {(total - 1) / fps:.2f} s"
    return "  ·  ".join((" + ".join(cameras), subject, clock))
