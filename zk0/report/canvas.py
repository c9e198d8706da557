"""What films are drawn on: cameras side by side, under them one panel with time series for each joint."""

from collections.abc import Mapping, Sequence
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
Colour = tuple[int, int, int]

HEAD = 84
TRACE = 118
LEAST_WIDTH = 720
GAP = 8
COLUMNS = 3
LEAST_SPAN_DEGREES = 20.0
STATE_COLOUR, ACTION_COLOUR, PREDICTION_COLOUR = (rgb(DARK.series[at]) for at in (0, 1, 2))
MUTED = rgb(DARK.muted)


@dataclass(frozen=True)
class Panel:
    """Where one joint's series lie on the canvas (pixels) and which values it spans."""

    left: int
    top: int
    right: int
    bottom: int
    low: float
    high: float

    def points(self, values: NDArray[np.floating], total: int, first: int = 0) -> NDArray[np.int32]:
        """Values at frames `first`, `first` + 1, ... of `total` as pixels in 1/8 steps, (n, 1, 2)."""
        x = self.left + (first + np.arange(len(values))) / max(total - 1, 1) * (self.right - self.left)
        share = (np.clip(values, self.low, self.high) - self.low) / (self.high - self.low)
        y = self.bottom - share * (self.bottom - self.top)
        return np.round(np.stack([x, y], axis=1) * 8).astype(np.int32)[:, None, :]


@dataclass(frozen=True)
class Scene:
    """What every frame of a film shows.

    images: camera name -> T frames, each (height, width, 3) uint8 RGB.
    series: what is drawn of each joint, (n, joints) in degrees (gripper 0-100); decides what the panels span.
    legend: names of the series with their colours.
    """

    images: Mapping[str, Sequence[Frame]]
    series: Sequence[NDArray[np.floating]]
    joints: Sequence[str]
    title: str
    legend: Sequence[tuple[str, Colour]]

    @property
    def total(self) -> int:
        """Frames of the film."""
        return len(next(iter(self.images.values())))

    def check(self, where: str) -> None:
        """Raises ReportError where the arrays do not fit together."""
        if not self.images or not self.total:
            raise ReportError(f"{where}: no images; expected at least one frame from one camera")
        for camera, frames in self.images.items():
            if len(frames) != self.total:
                raise ReportError(f"{where}: camera {camera} has {len(frames)} frames, expected {self.total}")
            shapes = {np.shape(f) for f in frames}
            if len(shapes) != 1 or any(np.asarray(f).dtype != np.uint8 or np.shape(f)[2:] != (3,) for f in frames):
                raise ReportError(
                    f"{where}: camera {camera} has frames {sorted(shapes)}, expected one (h, w, 3) of uint8"
                )
        if not all(np.isfinite(values).all() for values in self.series):
            raise ReportError(f"{where}: a series holds NaN or infinity; expected degrees")


class Canvas:
    """The parts of a film that stand still, drawn once."""

    def __init__(self, scene: Scene, camera_height: int) -> None:
        self._scene, self._height = scene, camera_height
        cameras = [_scaled(frames[0], camera_height).shape[1] for frames in scene.images.values()]
        width = max(LEAST_WIDTH, sum(cameras) + GAP * (len(cameras) - 1))
        self.panels: list[Panel] = []
        self._still = self._drawn(width + width % 2)

    def frame(self, now: int) -> Frame:
        """A fresh frame with the cameras' pictures of one moment."""
        frame = self._still.copy()
        shots = [_scaled(frames[now], self._height) for frames in self._scene.images.values()]
        left = (frame.shape[1] - sum(s.shape[1] for s in shots) - GAP * (len(shots) - 1)) // 2
        for shot in shots:
            frame[HEAD : HEAD + self._height, left : left + shot.shape[1]] = shot
            left += shot.shape[1] + GAP
        return frame

    def captioned(self, frame: Frame, caption: str, badge: tuple[str, str] | None = None) -> Frame:
        """The frame with a line of text under its title, and a badge (text, #rrggbb) on the right."""
        picture = Image.fromarray(frame)
        pen = ImageDraw.Draw(picture)
        pen.text((GAP + 4, 52), caption, fill=DARK.muted, font=_font(14))
        if badge:
            text, colour = badge
            right = frame.shape[1] - GAP - 4
            pen.rounded_rectangle((right - 140, 8, right, 38), radius=6, outline=colour, width=2)
            pen.text((right - 70, 23), text, fill=colour, font=_font(16, bold=True), anchor="mm")
        return np.array(picture)

    def _drawn(self, width: int) -> Frame:
        scene = self._scene
        rows = -(-len(scene.joints) // COLUMNS)
        height = HEAD + self._height + GAP + rows * TRACE + GAP
        canvas = np.empty((height + height % 2, width, 3), np.uint8)
        canvas[:] = rgb(DARK.background)
        across = (width - GAP * (COLUMNS + 1)) // COLUMNS
        for index, joint in enumerate(scene.joints):
            left = GAP + (index % COLUMNS) * (across + GAP)
            top = HEAD + self._height + GAP + (index // COLUMNS) * TRACE
            cv2.rectangle(canvas, (left, top), (left + across, top + TRACE - GAP), rgb(DARK.card), cv2.FILLED)
            low, high = _span(joint, [values[:, index] for values in scene.series])
            self.panels.append(Panel(left + 44, top + 28, left + across - 10, top + TRACE - GAP - 10, low, high))
        return self._labelled(canvas)

    def _labelled(self, canvas: Frame) -> Frame:
        scene = self._scene
        picture = Image.fromarray(canvas)
        pen = ImageDraw.Draw(picture)
        pen.text((GAP + 4, 10), _fitted(scene.title, canvas.shape[1] - 190), fill=DARK.ink, font=_font(20, bold=True))
        for joint, panel in zip(scene.joints, self.panels, strict=True):
            unit = "0-100" if joint.startswith("gripper") else "°"
            name = joint.removesuffix(".pos").replace("_", " ")
            pen.text((panel.left - 36, panel.top - 22), f"{name} ({unit})", fill=DARK.ink, font=_font(13))
            for value, y in ((panel.high, panel.top), (panel.low, panel.bottom)):
                pen.text((panel.left - 6, y), f"{value:.0f}", fill=DARK.muted, font=_font(11), anchor="rm")
                pen.line((panel.left, y, panel.right, y), fill=DARK.line)
        right = float(canvas.shape[1] - GAP - 4)
        for name, colour in reversed(scene.legend):
            pen.text((right, 53), name, fill=colour, font=_font(14, bold=True), anchor="ra")
            right -= _font(14, bold=True).getlength(name) + 14
        return np.array(picture)


def titled(frame: Frame, title: str) -> Frame:
    """The frame under a bar with a title."""
    bar = np.empty((36, frame.shape[1], 3), np.uint8)
    bar[:] = rgb(DARK.card)
    picture = Image.fromarray(np.concatenate([bar, frame]))
    ImageDraw.Draw(picture).text((GAP + 4, 8), title, fill=DARK.ink, font=_font(16, bold=True))
    return np.array(picture)


def camera_rows(camera_height: int) -> tuple[int, int]:
    """Rows of a frame, first and end, that show the cameras."""
    return HEAD, HEAD + camera_height


def trace(frame: Frame, points: NDArray[np.int32], colour: Colour, thickness: int = 2, *, dot: bool = True) -> None:
    """Draw a series, with a dot at its end."""
    if not len(points):
        return
    cv2.polylines(frame, [points], isClosed=False, color=colour, thickness=thickness, lineType=cv2.LINE_AA, shift=3)
    if dot:
        x, y = (int(v) for v in points[-1, 0])
        cv2.circle(frame, (x, y), 3 * 8, colour, cv2.FILLED, cv2.LINE_AA, shift=3)


def _span(joint: str, series: Sequence[NDArray[np.floating]]) -> tuple[float, float]:
    both = np.concatenate(series)
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
