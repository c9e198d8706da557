"""Reduce one block of all updates to one block of new global weights, and accumulate norms and inner products."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.aggregation.arrays import Float64Array, float16_as_float32
from zk0.aggregation.block_reader import BlockReader, BlockValues
from zk0.aggregation.blocks import Block
from zk0.aggregation.kernels import delta_products_kernel
from zk0.aggregation.reduction_plan import ReductionPlan
from zk0.weights.files import WeightsSource

_FLOAT64 = np.dtype(np.float64)


@dataclass
class Accumulator:
    """Sums over the values reduced so far, where `old` and `new` are global weights before and after the round.

    Attributes:
        squared_change: ||new - old||^2.
        squared_deltas: ||update - old||^2 of each update (updates,).
        products: <update - old, new - old> of each update (updates,).
    """

    squared_change: float
    squared_deltas: Float64Array
    products: Float64Array

    @classmethod
    def zero(cls, updates: int) -> "Accumulator":
        """Return the sums over no values, for so many updates."""
        return cls(0.0, np.zeros(updates), np.zeros(updates))

    def add(self, other: "Accumulator") -> None:
        """Add the sums over more values; the order of the calls decides the last bits."""
        self.squared_change += other.squared_change
        self.squared_deltas += other.squared_deltas
        self.products += other.products


@dataclass(frozen=True)
class ReducedBlock:
    """New values of a block in the dtype of the old ones, the new state of each slot, and the block's sums."""

    new: NDArray[Any]
    state: tuple[NDArray[Any], ...]
    sums: Accumulator


class BlockReducer:
    """Applies a reduction plan to blocks of a round's updates; several threads may call it at once.

    Args:
        reader: reads the updates and the old values.
        plan: what is done with them.
        state: the server's state, one source for each slot of the strategy; None: the slot is zero.
    """

    def __init__(self, reader: BlockReader, plan: ReductionPlan, state: Sequence[WeightsSource | None] = ()) -> None:
        self._reader, self._plan, self._state = reader, plan, state
        self._scaled = np.flatnonzero(plan.scales != 1.0)

    def __call__(self, block: Block) -> ReducedBlock:
        """Return the new values of a block."""
        dtype = np.dtype(self._reader.global_weights.specs[block.name].dtype)
        new, sums = np.empty(block.length, dtype), Accumulator.zero(len(self._reader.sources))
        state = tuple(self._read_slot(source, block, dtype) for source in self._state)
        noise = self._plan.noise(block) if self._plan.noise else None
        with np.errstate(invalid="ignore", over="ignore"):  # the sums are not finite then, which the caller checks
            part = self._reader.read(block)
            combined = self._scale_and_combine(part)
            if noise is not None:
                combined += noise
            new[:] = self._take_server_step(combined, part, state)
            values, old, after = map(float16_as_float32, (part.values, part.old, new))
            sums.squared_change = delta_products_kernel(values, old, after, sums.squared_deltas, sums.products)
        return ReducedBlock(new, state, sums)

    def _scale_and_combine(self, part: BlockValues) -> Float64Array:
        if not self._scaled.size:
            return self._plan.combine(part.values, self._plan.weights)
        scaled = self._reader.scratch.array("scaled", _FLOAT64, *part.values.shape)
        np.copyto(scaled, part.values)
        for i in self._scaled:
            scaled[i] -= part.old
            scaled[i] *= self._plan.scales[i]
            scaled[i] += part.old
        return self._plan.combine(scaled, self._plan.weights)

    def _take_server_step(
        self, combined: Float64Array, part: BlockValues, state: tuple[NDArray[Any], ...]
    ) -> Float64Array:
        """Return the new values, and overwrite `state` with the new state."""
        new, after = self._plan.server_step(combined, part.old, [slot.astype(np.float64) for slot in state])
        for slot, values in zip(state, after, strict=True):
            slot[:] = values
        return new

    def _read_slot(self, source: WeightsSource | None, block: Block, dtype: np.dtype[Any]) -> NDArray[Any]:
        values = np.zeros(block.length, dtype)
        if source is not None:
            source.read(block.name, block.start, values)
        return values
