"""The recorded frames of `scripts/base/record.py` as arrays, and their statistics."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zk0.records import Moments, Statistics

CAMERAS = ("overhead", "wrist")
HELD_OUT = 10
"""Every tenth scene of a file is held out."""
Columns = dict[str, np.ndarray]
"""Arrays of all recorded frames by name."""


def read_recordings(files: Sequence[Path]) -> Columns:
    """The frames of all files; `task` is the task of each frame."""
    parts = [dict(np.load(file)) for file in files]
    columns = {name: np.concatenate([part.pop(name) for part in parts]) for name in sorted(parts[0].keys() - {"task"})}
    columns["task"] = np.concatenate(
        [np.full(count, str(part["task"])) for part, count in zip(parts, _counts(files), strict=True)]
    )
    return columns


def _counts(files: Sequence[Path]) -> list[int]:
    counts = []
    for file in files:
        with np.load(file) as columns:
            counts.append(len(columns["n"]))
    return counts


def training_frames(columns: Columns) -> Tensor:
    """Indices of the frames that are trained on."""
    return torch.from_numpy(np.flatnonzero(columns["episode"] % HELD_OUT != HELD_OUT - 1))


def held_out_frames(columns: Columns) -> Tensor:
    """Indices of the other frames."""
    return torch.from_numpy(np.flatnonzero(columns["episode"] % HELD_OUT == HELD_OUT - 1))


def camera_images(columns: Columns, device: torch.device) -> dict[str, Tensor]:
    """The images (frames, height, width, 3) of each camera as bytes, on the device that trains."""
    return {camera: torch.from_numpy(columns[camera]).to(device) for camera in CAMERAS}


def frame_images(stored: Tensor, chosen: Any) -> Tensor:
    """Images (frames, 3, height, width) in 0..1."""
    return stored[chosen].permute(0, 3, 1, 2).float() / 255


def measure_frames(columns: Columns) -> Statistics:
    """Moments of the states and of the first action of each frame's chunk."""

    def moments(values: np.ndarray) -> Moments:
        found = {name: tuple(getattr(values, name)(0).astype(float).tolist()) for name in ("mean", "std", "min", "max")}
        return Moments(count=len(values), **found)

    return Statistics(state=moments(columns["state"]), action=moments(columns["chunk"][:, 0]))
