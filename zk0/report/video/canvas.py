"""Canvas of the videos: camera images side by side, below them one panel with time series per joint."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from zk0.errors import ReportError
from zk0.report.palette import DARK_THEME, rgb

Frame = NDArray[np.uint8]
"""(height, width, 3), RGB."""
Color = tuple[int, int, int]

HEADER_HEIGHT = 84
"""Rows above the camera images, in pixels."""
PANEL_HEIGHT = 118
MIN_WIDTH = 720
GAP = 8
PANEL_COLUMNS = 3
"""Panels beside each other."""
MIN_SPAN_DEGREES = 20.0
"""Smallest range of values that a panel shows."""
STATE_COLOR, ACTION_COLOR, PREDICTION_COLOR = (rgb(DARK_THEME.series[at]) for at in (0, 1, 2))
MUTED = rgb(DARK_THEME.muted)


@dataclass(frozen=True)
class Panel:
    """Position of one joint's panel on the canvas (pixels), and the range of its values."""

    left: int
    top: int
    right: int
    bottom: int
    low: float
    high: float

    def points(self, values: NDArray[np.floating], total: int, first: int = 0) -> NDArray[np.int32]:
        """Coordinates of the values at frames `first`, `first` + 1, ... of `total`, in 1/8 pixels, (n, 1, 2)."""
        x = self.left + (first + np.arange(len(values))) / max(total - 1, 1) * (self.right - self.left)
        fraction = (np.clip(values, self.low, self.high) - self.low) / (self.high - self.low)
        y = self.bottom - fraction * (self.bottom - self.top)
        return np.round(np.stack([x, y], axis=1) * 8).astype(np.int32)[:, None, :]


@dataclass(frozen=True)
class Scene:
    """Content of a video.

    Args:
        images: camera name -> T frames, each (height, width, 3) uint8 RGB.
        series: time series of the joints, each (n, joints) in degrees (gripper 0-100); they set the panels' ranges.
        joints: names.
        title: of the video.
        legend: names of the series with their colors.
    """

    images: Mapping[str, Sequence[Frame]]
    series: Sequence[NDArray[np.floating]]
    joints: Sequence[str]
    title: str
    legend: Sequence[tuple[str, Color]]

    @property
    def frame_count(self) -> int:
        """Number of frames of the video."""
        return len(next(iter(self.images.values())))

    def check(self, where: str) -> None:
        """Check that the arrays have matching lengths and finite values; images are checked as they are drawn.

        Raises:
            ReportError: they do not.
        """
        if not self.images or not self.frame_count:
            raise ReportError(f"{where}: no images; expected at least one frame from one camera")
        for camera, frames in self.images.items():
            if len(frames) != self.frame_count:
                raise ReportError(f"{where}: camera {camera} has {len(frames)} frames, expected {self.frame_count}")
        if not all(np.isfinite(values).all() for values in self.series):
            raise ReportError(f"{where}: a series holds NaN or infinity; expected degrees")


class Canvas:
    """The fixed parts of a video, drawn once: title, legend, panels with their labels."""

    def __init__(self, scene: Scene, camera_height: int) -> None:
        self._scene, self._height = scene, camera_height
        self._shapes = {camera: np.shape(frames[0]) for camera, frames in scene.images.items()}
        cameras = [_scaled(image, camera_height).shape[1] for image in self._images(0)]
        width = max(MIN_WIDTH, sum(cameras) + GAP * (len(cameras) - 1))
        self.panels: list[Panel] = []
        self._background = self._drawn(width + width % 2)

    def frame(self, now: int) -> Frame:
        """A new frame with the camera images at one time step; without series.

        Raises:
            ReportError: an image is none, or has another shape than the camera's first one.
        """
        frame = self._background.copy()
        images = [_scaled(image, self._height) for image in self._images(now)]
        left = (frame.shape[1] - sum(image.shape[1] for image in images) - GAP * (len(images) - 1)) // 2
        for image in images:
            frame[HEADER_HEIGHT : HEADER_HEIGHT + self._height, left : left + image.shape[1]] = image
            left += image.shape[1] + GAP
        return frame

    def _images(self, now: int) -> Iterator[Frame]:
        for camera, frames in self._scene.images.items():
            image, first = frames[now], self._shapes[camera]
            if image.dtype != np.uint8 or image.shape != first or image.shape[2:] != (3,):
                found = f"{self._scene.title}: camera {camera} has {image.shape} of {image.dtype} as frame {now}"
                raise ReportError(f"{found}, expected {first} like the first one: (h, w, 3) of uint8")
            yield image

    def with_caption(self, frame: Frame, caption: str, badge: tuple[str, str] | None = None) -> Frame:
        """The frame with a caption below the title, and a badge (text, #rrggbb) on the right."""
        image = Image.fromarray(frame)
        drawing = ImageDraw.Draw(image)
        drawing.text((GAP + 4, 52), caption, fill=DARK_THEME.muted, font=_font(14))
        if badge:
            text, color = badge
            right = frame.shape[1] - GAP - 4
            drawing.rounded_rectangle((right - 140, 8, right, 38), radius=6, outline=color, width=2)
            drawing.text((right - 70, 23), text, fill=color, font=_font(16, bold=True), anchor="mm")
        return np.array(image)

    def _drawn(self, width: int) -> Frame:
        scene = self._scene
        rows = -(-len(scene.joints) // PANEL_COLUMNS)
        height = HEADER_HEIGHT + self._height + GAP + rows * PANEL_HEIGHT + GAP
        canvas = np.empty((height + height % 2, width, 3), np.uint8)
        canvas[:] = rgb(DARK_THEME.background)
        across = (width - GAP * (PANEL_COLUMNS + 1)) // PANEL_COLUMNS
        for index, joint in enumerate(scene.joints):
            left = GAP + (index % PANEL_COLUMNS) * (across + GAP)
            top = HEADER_HEIGHT + self._height + GAP + (index // PANEL_COLUMNS) * PANEL_HEIGHT
            cv2.rectangle(
                canvas, (left, top), (left + across, top + PANEL_HEIGHT - GAP), rgb(DARK_THEME.card), cv2.FILLED
            )
            low, high = _span(joint, [values[:, index] for values in scene.series])
            self.panels.append(Panel(left + 44, top + 28, left + across - 10, top + PANEL_HEIGHT - GAP - 10, low, high))
        return self._labeled(canvas)

    def _labeled(self, canvas: Frame) -> Frame:
        scene = self._scene
        image = Image.fromarray(canvas)
        drawing = ImageDraw.Draw(image)
        drawing.text(
            (GAP + 4, 10),
            _shortened(scene.title, canvas.shape[1] - 190),
            fill=DARK_THEME.text,
            font=_font(20, bold=True),
        )
        for joint, panel in zip(scene.joints, self.panels, strict=True):
            unit = "0-100" if joint.startswith("gripper") else "°"
            name = joint.removesuffix(".pos").replace("_", " ")
            drawing.text((panel.left - 36, panel.top - 22), f"{name} ({unit})", fill=DARK_THEME.text, font=_font(13))
            for value, y in ((panel.high, panel.top), (panel.low, panel.bottom)):
                drawing.text((panel.left - 6, y), f"{value:.0f}", fill=DARK_THEME.muted, font=_font(11), anchor="rm")
                drawing.line((panel.left, y, panel.right, y), fill=DARK_THEME.line)
        right = float(canvas.shape[1] - GAP - 4)
        for name, color in reversed(scene.legend):
            drawing.text((right, 53), name, fill=color, font=_font(14, bold=True), anchor="ra")
            right -= _font(14, bold=True).getlength(name) + 14
        return np.array(image)


def add_title_bar(frame: Frame, title: str) -> Frame:
    """The frame below a bar with a title."""
    bar = np.empty((36, frame.shape[1], 3), np.uint8)
    bar[:] = rgb(DARK_THEME.card)
    image = Image.fromarray(np.concatenate([bar, frame]))
    ImageDraw.Draw(image).text((GAP + 4, 8), title, fill=DARK_THEME.text, font=_font(16, bold=True))
    return np.array(image)


def camera_rows(camera_height: int) -> tuple[int, int]:
    """First row and end row of the camera images in a frame."""
    return HEADER_HEIGHT, HEADER_HEIGHT + camera_height


def draw_trace(frame: Frame, points: NDArray[np.int32], color: Color, thickness: int = 2, *, dot: bool = True) -> None:
    """Draw a series into the frame, with a dot at its end."""
    if not len(points):
        return
    cv2.polylines(frame, [points], isClosed=False, color=color, thickness=thickness, lineType=cv2.LINE_AA, shift=3)
    if dot:
        x, y = (int(v) for v in points[-1, 0])
        cv2.circle(frame, (x, y), 3 * 8, color, cv2.FILLED, cv2.LINE_AA, shift=3)


def _span(joint: str, series: Sequence[NDArray[np.floating]]) -> tuple[float, float]:
    values = np.concatenate(series)
    low, high = float(values.min()), float(values.max())
    if joint.startswith("gripper"):
        return min(low, 0.0), max(high, 100.0)
    margin = max(MIN_SPAN_DEGREES - (high - low), 0.1 * (high - low)) / 2
    return low - margin, high + margin


def _scaled(image: Frame, height: int) -> Frame:
    width = round(image.shape[1] * height / image.shape[0])
    interpolation = cv2.INTER_CUBIC if height > image.shape[0] else cv2.INTER_AREA
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), dtype=np.uint8)


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _shortened(text: str, width: int) -> str:
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    font = _font(20, bold=True)
    if font.getlength(plain) <= width:
        return plain
    while plain and font.getlength(f"{plain}…") > width:
        plain = plain[:-1]
    return f"{plain}…"
