"""Updates that began from older weights than the server holds now: their deltas are added to the new weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.records import Update
from zk0.weights.files import WeightsSource, open_weights
from zk0.weights.update_files import open_update


@dataclass(frozen=True)
class StaleStart:
    """From which weights an update began, and how much it counts (`zk0.rules.buffered_rounds.staleness_factor`)."""

    weights: Path
    factor: float


class RebasedUpdate:
    """Source of `now + (trained - start)`, computed in float64 and rounded once.

    Args:
        trained: weights of the update.
        start: the global weights that it was trained from.
        now: the global weights that its delta is added to; `specs` are theirs.
    """

    def __init__(self, trained: WeightsSource, start: WeightsSource, now: WeightsSource) -> None:
        self.specs = now.specs
        self._trained, self._start, self._now = trained, start, now

    def read(self, name: str, start: int, out: NDArray[Any]) -> None:
        """Fill `out` with values `start`, `start + 1`, ... of the flat tensor."""
        part = np.empty_like(out)
        self._trained.read(name, start, out)
        total = out.astype(np.float64)
        self._start.read(name, start, part)
        total -= part
        self._now.read(name, start, part)
        total += part
        out[:] = total


@contextmanager
def open_stale_update(update: Update, start: Path, now: WeightsSource) -> Iterator[WeightsSource]:
    """Open an update as if it had been trained from the global weights of now; `now` must stay open meanwhile.

    Deltas and LoRA factors are applied to these weights; of dense weights, those that they were trained from are
    subtracted first.

    Raises:
        CheckpointError: a file that cannot be read.
        UpdateError: the update does not hold what it names.
    """
    with open_update(update, now) as trained:
        if update.lora is not None or update.wire.upload != "fp32":
            yield trained
            return
        with open_weights(start) as older:
            yield RebasedUpdate(trained, older, now)
