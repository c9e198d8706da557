"""One block of all updates folded into one block of the new weights, and what it says of each update."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.aggregation.blocks import Block
from zk0.aggregation.combine import Combine, widened
from zk0.aggregation.kernels import measure
from zk0.aggregation.reader import Part, Reader
from zk0.aggregation.server_step import ServerStep
from zk0.weights import Source

Values = NDArray[np.float64]
_FLOAT64 = np.dtype(np.float64)


@dataclass(frozen=True)
class Recipe:
    """How values become new values: clip each update's step, combine, add noise, take the server's own step."""

    combine: Combine
    weights: Values
    """Of each update in a mean."""
    scales: Values
    """What each update's step is multiplied by first."""
    noise: Callable[[Block], Values] | None = None
    """What is added to the combined values of a block."""
    step: ServerStep | None = None


@dataclass
class Sums:
    """Inner products of steps away from the old weights, over the values folded so far.

    `step` is ||new - old||^2; `squares` ||update - old||^2 and `products` <update - old, new - old> of each update.
    """

    step: float
    squares: Values
    products: Values

    @classmethod
    def none(cls, updates: int) -> "Sums":
        """Before the first value."""
        return cls(0.0, np.zeros(updates), np.zeros(updates))

    def add(self, other: "Sums") -> None:
        """Take in those of more values; the order of the calls decides the last bits."""
        self.step += other.step
        self.squares += other.squares
        self.products += other.products


@dataclass(frozen=True)
class Folded:
    """New values of a block in the dtype of the old ones, the new state in each slot, and the sums."""

    new: NDArray[Any]
    state: tuple[NDArray[Any], ...]
    sums: Sums


class Fold:
    """A recipe over the updates of a round; may be called from several threads at once.

    `state` is read from one source for each slot of the recipe's step; None: it is zero.
    """

    def __init__(self, reader: Reader, recipe: Recipe, state: Sequence[Source | None] = ()) -> None:
        self._reader, self._recipe, self._state = reader, recipe, state
        self._clipped = np.flatnonzero(recipe.scales != 1.0)

    def __call__(self, block: Block) -> Folded:
        """The new values of a block."""
        dtype = np.dtype(self._reader.anchor.specs[block.name].dtype)
        new, sums = np.empty(block.length, dtype), Sums.none(len(self._reader.sources))
        state = tuple(self._slot(source, block, dtype) for source in self._state)
        noise = self._recipe.noise(block) if self._recipe.noise else None
        with np.errstate(invalid="ignore", over="ignore"):  # sums that are not finite tell of it
            part = self._reader.read(block)
            combined = self._combined(part)
            if noise is not None:
                combined += noise
            new[:] = self._stepped(combined, part, state)
            values, old, after = widened(part.values), widened(part.old), widened(new)
            sums.step = measure(values, old, after, sums.squares, sums.products)
        return Folded(new, state, sums)

    def _combined(self, part: Part) -> Values:
        if not self._clipped.size:
            return self._recipe.combine(part.values, self._recipe.weights)
        wide = self._reader.scratch.array("wide", _FLOAT64, *part.values.shape)
        np.copyto(wide, part.values)
        for i in self._clipped:
            wide[i] -= part.old
            wide[i] *= self._recipe.scales[i]
            wide[i] += part.old
        return self._recipe.combine(wide, self._recipe.weights)

    def _stepped(self, combined: Values, part: Part, state: tuple[NDArray[Any], ...]) -> Values:
        if self._recipe.step is None:
            return combined
        before = [slot.astype(np.float64) for slot in state]
        new, after = self._recipe.step.take(combined, part.old.astype(np.float64), before)
        for slot, values in zip(state, after, strict=True):
            slot[:] = values
        return new

    def _slot(self, source: Source | None, block: Block, dtype: np.dtype[Any]) -> NDArray[Any]:
        values = np.zeros(block.length, dtype)
        if source is not None:
            source.read(block.name, block.start, values)
        return values
