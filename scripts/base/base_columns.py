"""The recorded frames of `scripts/base/record.py` as arrays, and their statistics."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zk0.records import Moments, Statistics
from zk0.simulator.tasks import find_task

CAMERAS = ("overhead", "wrist")
HELD_OUT = 10
"""Every tenth scene of a file is held out."""
Columns = dict[str, np.ndarray]
"""Arrays of all recorded frames by name."""


def recorded_files(folder: Path, prefix: str = "", rounds: int | None = None) -> list[Path]:
    """The files of `scripts/base/record.py`, of the first rounds only, whose task begins with the prefix."""
    files = sorted(folder.glob(f"{prefix}*-[0-9][0-9][0-9].npz"))
    return [file for file in files if rounds is None or int(file.stem[-3:]) < rounds]


def read_recordings(files: Sequence[Path]) -> Columns:
    """The frames of all files; `task` is the task of each frame."""
    parts = [dict(np.load(file)) for file in files]
    for part in parts:
        part["task"] = np.broadcast_to(part["task"], len(part["n"]))
    return {name: np.concatenate([part.pop(name) for part in parts]) for name in sorted(parts[0].keys())}


def join_columns(recorded: Columns, random: Columns) -> Columns:
    """Recorded frames and those of `scripts/base/random_scenes.py`; `random` says which. Both are emptied."""
    drawn = np.repeat([0, 1], [len(recorded["n"]), len(random["n"])])
    columns = {name: np.concatenate([recorded.pop(name), random.pop(name)]) for name in sorted(random.keys())}
    return columns | {"random": drawn}


def training_frames(columns: Columns) -> Tensor:
    """Indices of the frames that are trained on."""
    return torch.from_numpy(np.flatnonzero(columns["episode"] % HELD_OUT != HELD_OUT - 1))


def held_out_frames(columns: Columns) -> Tensor:
    """Indices of the other frames."""
    return torch.from_numpy(np.flatnonzero(columns["episode"] % HELD_OUT == HELD_OUT - 1))


def every_nth(frames: Tensor, count: int) -> Tensor:
    """About `count` of the frames, evenly spread."""
    return frames[:: max(1, len(frames) // count)]


def task_tokens(policy: Any, tasks: np.ndarray) -> tuple[Tensor, Tensor]:
    """Token ids (frames, length) of the frames' tasks, padded on the right, and their mask."""
    names, row = np.unique(tasks, return_inverse=True)
    tokenizer = policy.model.vlm_with_expert.processor.tokenizer
    texts = [f"{find_task(str(name)).text}\n" for name in names]
    found = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    return found["input_ids"][row], found["attention_mask"].bool()[row]


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
