"""The frames of `scripts/base/record_attempts.py` as tensors, and their statistics."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from places import object_targets
from torch import Tensor
from torch.nn import functional

from zk0.records import CAMERA_PREFIX, Moments, Statistics
from zk0.simulator.tasks import CAMERAS, find_task

HELD_OUT = 25
"""One of this many attempts is held out."""
Columns = dict[str, np.ndarray]
"""Arrays of all recorded frames by name."""


class RecordedFrames:
    """All frames of a folder; `read_new` adds the files that came since.

    Args:
        folder: of `scripts/base/record_attempts.py`.
        policy: whose tokenizer and widths the tensors fit.
        statistics: that normalize; None: those of the frames that are there now.

    Raises:
        SystemExit: the folder has no frames yet.
    """

    def __init__(self, folder: Path, policy: Any, statistics: Statistics | None) -> None:
        self._folder, self._policy, self._files = folder, policy, set[Path]()
        self._columns: Columns = {}
        if not self._read_files():
            raise SystemExit(f"{folder}: no frames; run scripts/base/record_attempts.py first")
        self.statistics = statistics or measure_frames(self._columns)
        self._make_tensors()

    def read_new(self) -> None:
        """Add the frames of new files."""
        if self._read_files():
            self._make_tensors()
            sys.stdout.write(f"{len(self.training)} frames to train on\n")

    def images(self, chosen: Tensor) -> dict[str, Tensor]:
        """Images (frames, 3, height, width) in 0..1 by feature key."""
        return {f"{CAMERA_PREFIX}{c}": stored[chosen].permute(0, 3, 1, 2) / 255 for c, stored in self._images.items()}

    def _read_files(self) -> bool:
        found = []
        for file in sorted(set(self._folder.glob("*.npz")) - self._files):
            try:
                with np.load(file) as columns:
                    found.append(dict(columns))
            except (BadZipFile, OSError, ValueError) as e:
                raise SystemExit(f"{file}: {e}; delete the file") from e
            self._files.add(file)
        if found:
            parts = [self._columns, *found] if self._columns else found
            self._columns = {name: np.concatenate([part[name] for part in parts]) for name in found[0]}
        return bool(found)

    def _make_tensors(self) -> None:
        columns, width = self._columns, self._policy.config.max_action_dim
        self.tokens, self.mask = task_tokens(self._policy, columns["task"])
        self.targets = object_targets(columns)
        self.states = _normalize(columns["state"], self.statistics.state, width)
        self.actions = _normalize(columns["chunk"], self.statistics.action, width)
        self._images = {camera: torch.from_numpy(columns[camera]) for camera in CAMERAS}
        held_out = columns["attempt"] % HELD_OUT == 0
        self.training, self.held_out = (torch.from_numpy(np.flatnonzero(k)) for k in (~held_out, held_out))


def task_tokens(policy: Any, tasks: np.ndarray) -> tuple[Tensor, Tensor]:
    """Token ids (frames, length) of the frames' tasks, padded on the right, and their mask."""
    names, row = np.unique(tasks, return_inverse=True)
    tokenizer = policy.model.vlm_with_expert.processor.tokenizer
    texts = [f"{find_task(str(name)).text}\n" for name in names]
    found = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    return found["input_ids"][row], found["attention_mask"].bool()[row]


def measure_frames(columns: Mapping[str, np.ndarray]) -> Statistics:
    """Moments of the states and of the first action of each frame's chunk."""

    def moments(values: np.ndarray) -> Moments:
        found = {name: tuple(getattr(values, name)(0).astype(float).tolist()) for name in ("mean", "std", "min", "max")}
        return Moments(count=len(values), **found)

    return Statistics(state=moments(columns["state"]), action=moments(columns["chunk"][:, 0]))


def _normalize(values: np.ndarray, moments: Moments, width: int) -> Tensor:
    normalized = (values - np.asarray(moments.mean)) / np.asarray(moments.std)
    return functional.pad(torch.tensor(normalized, dtype=torch.float32), (0, width - values.shape[-1]))
