"""Videos: what the cameras saw beside what the joints did, at the data's true frame rate."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import imageio.v2 as imageio
import numpy as np
from numpy.typing import NDArray

from zk0.errors import ReportError
from zk0.report.palette import DARK, rgb
from zk0.report.write import aside

Image = NDArray[np.uint8]
_HEIGHT = 360
_PANEL = 520
_MARGIN = 12
_HEADER = 36
_INK, _MUTED, _LINE = rgb(DARK.ink), rgb(DARK.muted), rgb(DARK.line)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def write_video(path: Path, frames: Iterable[Image], fps: float) -> int:
    """An H.264 MP4 that plays everywhere, whole or not at all; returns the number of frames.

    Raises:
        ReportError: there is no frame, or the encoder fails.
    """
    count = 0
    with aside(path) as half:
        try:
            with imageio.get_writer(
                half, fps=fps, codec="libx264", pixelformat="yuv420p", macro_block_size=2, ffmpeg_log_level="error"
            ) as writer:
                for frame in frames:
                    writer.append_data(frame)
                    count += 1
        except (RuntimeError, ValueError) as e:
            raise ReportError(f"{path}: the video cannot be encoded: {str(e).splitlines()[0]}") from e
        if count == 0:
            raise ReportError(f"{path}: no frame to write, expected at least one")
    return count


@dataclass(frozen=True)
class Traces:
    """What the joints did in T frames."""

    joints: Sequence[str]
    states: NDArray[Any]
    """(T, joints) degrees; gripper 0-100."""
    actions: NDArray[Any]
    """(T, joints) what was asked for, in the same units."""


def rollout_frames(
    images: Sequence[Mapping[str, Image]], traces: Traces, *, title: str, success: bool, fps: float
) -> Iterator[Image]:
    """One frame a moment: the cameras side by side, the joints' states (solid) and actions (thin) up to now.

    Raises:
        ReportError: images, states and actions do not have the same number of moments.
    """
    lengths = {len(images), len(traces.states), len(traces.actions)}
    if len(lengths) != 1:
        raise ReportError(f"{title}: images, states and actions of lengths {sorted(lengths)}, expected one length")
    panel = _JointPanel(traces)
    for now, seen in enumerate(images):
        cameras = np.concatenate([_camera(name, image) for name, image in seen.items()], axis=1)
        body = np.concatenate([cameras, panel.at(now)], axis=1)
        result = ("success" if success else "no success") if now == len(images) - 1 else ""
        header = _header(body.shape[1], f"{title}   {now / fps:4.1f} s", result, success)
        yield np.ascontiguousarray(np.concatenate([header, body], axis=0))


def _camera(name: str, image: Image) -> Image:
    height, width = image.shape[:2]
    scaled = cv2.resize(image, (2 * round(width * _HEIGHT / height / 2), _HEIGHT), interpolation=cv2.INTER_LINEAR)
    cv2.putText(scaled, name, (8, 20), _FONT, 0.5, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.putText(scaled, name, (8, 20), _FONT, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return np.asarray(scaled, dtype=np.uint8)


def _header(width: int, text: str, result: str, success: bool) -> Image:
    band = np.full((_HEADER, width, 3), rgb(DARK.card), np.uint8)
    cv2.putText(band, text, (_MARGIN, 24), _FONT, 0.55, _INK, 1, cv2.LINE_AA)
    if result:
        colour = rgb(DARK.good if success else DARK.bad)
        (length, _), _ = cv2.getTextSize(result, _FONT, 0.6, 2)
        cv2.putText(band, result, (width - length - _MARGIN, 24), _FONT, 0.6, colour, 2, cv2.LINE_AA)
    return band


class _JointPanel:
    """One row a joint, growing from left to right; the scale is fixed for the whole video."""

    def __init__(self, traces: Traces) -> None:
        self._traces = traces
        self._empty = np.full((_HEIGHT, _PANEL, 3), rgb(DARK.background), np.uint8)
        rows = len(traces.joints)
        self._row = _HEIGHT // rows
        both = np.concatenate([traces.states, traces.actions])
        self._low, high = both.min(axis=0), both.max(axis=0)
        self._span = np.maximum(high - self._low, 1.0)
        for index, joint in enumerate(traces.joints):
            top = index * self._row
            cv2.line(self._empty, (_MARGIN, top + self._row - 1), (_PANEL - _MARGIN, top + self._row - 1), _LINE, 1)
            label = f"{joint.removesuffix('.pos')}  {self._low[index]:.0f} to {high[index]:.0f}"
            cv2.putText(self._empty, label, (_MARGIN, top + 13), _FONT, 0.38, _MUTED, 1, cv2.LINE_AA)

    def at(self, now: int) -> Image:
        """The panel with traces up to and including moment `now`."""
        panel = self._empty.copy()
        for index in range(len(self._traces.joints)):
            colour = rgb(DARK.series[index % len(DARK.series)])
            self._trace(panel, self._traces.actions[: now + 1, index], index, _MUTED, 1)
            self._trace(panel, self._traces.states[: now + 1, index], index, colour, 2)
        return panel

    def _trace(self, panel: Image, values: NDArray[Any], index: int, colour: tuple[int, int, int], width: int) -> None:
        steps = max(len(self._traces.states) - 1, 1)
        across = _MARGIN + np.arange(len(values)) * (_PANEL - 2 * _MARGIN) / steps
        share = (values - self._low[index]) / self._span[index]
        down = (index + 1) * self._row - 5 - share * (self._row - 24)
        points = np.stack([across, down], axis=1).round().astype(np.int32)
        cv2.polylines(panel, [points], isClosed=False, color=colour, thickness=width, lineType=cv2.LINE_AA)
        cv2.circle(panel, (int(points[-1, 0]), int(points[-1, 1])), width + 1, colour, -1, cv2.LINE_AA)
