"""Frames of an attempt in the simulator: cameras side by side, under them every joint's state and action over time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from zk0.errors import ReportError
from zk0.report.palette import DARK, rgb

Frame = NDArray[np.uint8]
"""(height, width, 3), RGB."""

HEAD = 84
TRACE = 118
LEAST_WIDTH = 720
GAP = 8
LEAST_SPAN_DEGREES = 20.0
STATE_COLOUR, ACTION_COLOUR = rgb(DARK.series[0]), rgb(DARK.series[1])


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


def rollout_frames(attempt: Attempt, camera_height: int) -> Iterator[Frame]:
    """One frame (height, width, 3) uint8 RGB for each of the T observations; all have the same, even size.

    Raises:
        ReportError: the arrays do not fit together.
    """
    _check(attempt)
    cameras = [_scaled(frames[0], camera_height).shape[1] for frames in attempt.images.values()]
    width = max(LEAST_WIDTH, sum(cameras) + GAP * (len(cameras) - 1))
    canvas, panels = _canvas(attempt, width + width % 2, camera_height)
    return _draw(attempt, canvas, panels, camera_height)


@dataclass(frozen=True)
class _Panel:
    """Where one joint's trace lies on the canvas (pixels) and which values it spans."""

    left: int
    top: int
    right: int
    bottom: int
    low: float
    high: float

    def points(self, values: NDArray[np.floating], total: int) -> NDArray[np.int32]:
        """Values at frames 0, 1, ... of `total` as pixels in 1/8 steps, (n, 1, 2)."""
        x = self.left + np.arange(len(values)) / max(total - 1, 1) * (self.right - self.left)
        share = (np.clip(values, self.low, self.high) - self.low) / (self.high - self.low)
        y = self.bottom - share * (self.bottom - self.top)
        return np.round(np.stack([x, y], axis=1) * 8).astype(np.int32)[:, None, :]


def _check(attempt: Attempt) -> None:
    total, width = len(attempt.states), len(attempt.joints)
    where = f"attempt at {attempt.task!r}, seed {attempt.seed}"
    if not attempt.images or total == 0:
        raise ReportError(f"{where}: no images or no states; expected at least one frame from one camera")
    for camera, frames in attempt.images.items():
        if len(frames) != total:
            raise ReportError(
                f"{where}: camera {camera} has {len(frames)} frames, expected {total}, one for each state"
            )
        shapes = {np.shape(f) for f in frames}
        if len(shapes) != 1 or any(np.asarray(f).dtype != np.uint8 or np.shape(f)[2:] != (3,) for f in frames):
            raise ReportError(f"{where}: camera {camera} has frames {sorted(shapes)}, expected one (h, w, 3) of uint8")
    if attempt.states.shape != (total, width) or attempt.actions.shape not in ((total, width), (total - 1, width)):
        raise ReportError(
            f"{where}: states {attempt.states.shape} and actions {attempt.actions.shape}, expected ({total}, {width})"
        )
    if not (np.isfinite(attempt.states).all() and np.isfinite(attempt.actions).all()):
        raise ReportError(f"{where}: states or actions are NaN or infinite; expected degrees")


def _canvas(attempt: Attempt, width: int, camera_height: int) -> tuple[Frame, list[_Panel]]:
    columns = 3
    rows = -(-len(attempt.joints) // columns)
    height = HEAD + camera_height + GAP + rows * TRACE + GAP
    canvas = np.empty((height + height % 2, width, 3), np.uint8)
    canvas[:] = rgb(DARK.background)
    across = (width - GAP * (columns + 1)) // columns
    panels = []
    for index, joint in enumerate(attempt.joints):
        left = GAP + (index % columns) * (across + GAP)
        top = HEAD + camera_height + GAP + (index // columns) * TRACE
        cv2.rectangle(canvas, (left, top), (left + across, top + TRACE - GAP), rgb(DARK.card), cv2.FILLED)
        low, high = _span(joint, attempt.states[:, index], attempt.actions[:, index])
        panels.append(_Panel(left + 44, top + 28, left + across - 10, top + TRACE - GAP - 10, low, high))
    return _labelled(canvas, attempt, panels), panels


def _labelled(canvas: Frame, attempt: Attempt, panels: Sequence[_Panel]) -> Frame:
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    pen.text((GAP + 4, 10), _fitted(attempt.task, canvas.shape[1] - 190), fill=DARK.ink, font=_font(20, bold=True))
    for joint, panel in zip(attempt.joints, panels, strict=True):
        gripper = joint.startswith("gripper")
        unit = "0-100" if gripper else "°"
        name = joint.removesuffix(".pos").replace("_", " ")
        pen.text((panel.left - 36, panel.top - 22), f"{name} ({unit})", fill=DARK.ink, font=_font(13))
        for value, y in ((panel.high, panel.top), (panel.low, panel.bottom)):
            pen.text((panel.left - 6, y), f"{value:.0f}", fill=DARK.muted, font=_font(11), anchor="rm")
            pen.line((panel.left, y, panel.right, y), fill=DARK.line)
    right = canvas.shape[1] - GAP - 4
    pen.text((right, 53), "action", fill=ACTION_COLOUR, font=_font(14, bold=True), anchor="ra")
    pen.text((right - 62, 53), "state", fill=STATE_COLOUR, font=_font(14, bold=True), anchor="ra")
    return np.array(picture)


def _draw(attempt: Attempt, canvas: Frame, panels: Sequence[_Panel], camera_height: int) -> Iterator[Frame]:
    total = len(attempt.states)
    for now in range(total):
        frame = canvas.copy()
        shots = [_scaled(frames[now], camera_height) for frames in attempt.images.values()]
        left = (frame.shape[1] - sum(s.shape[1] for s in shots) - GAP * (len(shots) - 1)) // 2
        for shot in shots:
            frame[HEAD : HEAD + camera_height, left : left + shot.shape[1]] = shot
            left += shot.shape[1] + GAP
        for index, panel in enumerate(panels):
            _trace(frame, panel.points(attempt.actions[: now + 1, index], total), ACTION_COLOUR)
            _trace(frame, panel.points(attempt.states[: now + 1, index], total), STATE_COLOUR)
        yield _captioned(frame, attempt, now)


def _trace(frame: Frame, points: NDArray[np.int32], colour: tuple[int, int, int]) -> None:
    if len(points):
        cv2.polylines(frame, [points], isClosed=False, color=colour, thickness=2, lineType=cv2.LINE_AA, shift=3)
        x, y = (int(v) for v in points[-1, 0])
        cv2.circle(frame, (x, y), 3 * 8, colour, cv2.FILLED, cv2.LINE_AA, shift=3)


def _captioned(frame: Frame, attempt: Attempt, now: int) -> Frame:
    last = len(attempt.states) - 1
    text, colour = "running", DARK.muted
    if now == last:
        text, colour = ("success", DARK.good) if attempt.success else ("no success", DARK.bad)
    picture = Image.fromarray(frame)
    pen = ImageDraw.Draw(picture)
    clock = f"{now / attempt.fps:.2f} of {last / attempt.fps:.2f} s"
    caption = "  ·  ".join((" + ".join(attempt.images), f"seed {attempt.seed}", clock))
    pen.text((GAP + 4, 52), caption, fill=DARK.muted, font=_font(14))
    right = frame.shape[1] - GAP - 4
    pen.rounded_rectangle((right - 140, 8, right, 38), radius=6, outline=colour, width=2)
    pen.text((right - 70, 23), text, fill=colour, font=_font(16, bold=True), anchor="mm")
    return np.array(picture)


def _span(joint: str, states: NDArray[np.floating], actions: NDArray[np.floating]) -> tuple[float, float]:
    both = np.concatenate([states, actions])
    low, high = float(both.min()), float(both.max())
    if joint.startswith("gripper"):
        return min(low, 0.0), max(high, 100.0)
    room = max(LEAST_SPAN_DEGREES - (high - low), 0.1 * (high - low)) / 2
    return low - room, high + room


def _scaled(image: Frame, height: int) -> Frame:
    width = round(image.shape[1] * height / image.shape[0])
    way = cv2.INTER_CUBIC if height > image.shape[0] else cv2.INTER_AREA
    return np.asarray(cv2.resize(image, (width, height), interpolation=way), dtype=np.uint8)


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _fitted(text: str, width: int) -> str:
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    font = _font(20, bold=True)
    if font.getlength(plain) <= width:
        return plain
    while plain and font.getlength(f"{plain}…") > width:
        plain = plain[:-1]
    return f"{plain}…"
