"""Deltas as whole numbers on a grid that all clients of a round share, in words whose sums wrap around.

A client's word is `round(share * delta / step)` modulo 2^bits, where `share` is its part of the mean and all shares sum
to 1. The step is chosen so that no sum of the clients' numbers exceeds half of the ring: a sum of words is then the sum
of the numbers, and the width of a word does not limit the number of clients. Numbers are rounded to nearest.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.errors import UpdateError
from zk0.records import ClientMetrics, SummedUpdates
from zk0.weights.files import WeightsFile, WeightsSource
from zk0.weights.tensor_spec import TensorSpec, first_not_float32

METRICS_TENSOR = ":metrics"
"""Name of the tensor with the metrics' words; no weight has such a name."""
_METRICS = tuple(ClientMetrics.model_fields)
_METRICS_STEP, _METRICS_LIMIT = 2.0**-24, 2.0**36
_WORD_BITS = 64
"""Of a metric."""
_BLOCK_VALUES = 1 << 17


@dataclass(frozen=True)
class FixedPointGrid:
    """The grid of a round.

    Attributes:
        bits: of a word, 16 or 32.
        limit: the largest change of a weight in a round; a larger one is cut to it.
        clients: how many take part.
    """

    bits: int
    limit: float
    clients: int

    @property
    def step(self) -> float:
        """Distance of two numbers on the grid.

        >>> FixedPointGrid(16, 1.0, 4).step == 1 / 32763
        True
        """
        return self.limit / (2 ** (self.bits - 1) - 1 - self.clients)

    def encode(self, deltas: NDArray[Any], share: float) -> NDArray[Any]:
        """Return the words of deltas that have this share in the mean, in a new array.

        >>> FixedPointGrid(16, 1.0, 4).encode(np.array([0.5, -1.0, 7.0]), 0.5).tolist()
        [8191, 49154, 16382]
        """
        numbers = np.clip(deltas, -self.limit, self.limit).astype(np.float64)
        numbers *= share / self.step
        return np.rint(numbers, out=numbers).astype(np.int64).astype(f"uint{self.bits}")

    def rounding_error(self, values: int) -> float:
        """Return the largest L2 norm by which rounding changes so many values of a share of a delta."""
        return 0.5 * self.step * float(np.sqrt(values))


def masked_specs(specs: Mapping[str, TensorSpec], bits: int) -> dict[str, TensorSpec]:
    """Return the tensors of a file with the words of a client: those of `summed_specs`, and those of its metrics.

    Raises:
        UpdateError: the weights are not float32.
    """
    return summed_specs(specs, bits) | {METRICS_TENSOR: TensorSpec(f"uint{_WORD_BITS}", (len(_METRICS),))}


def summed_specs(specs: Mapping[str, TensorSpec], bits: int) -> dict[str, TensorSpec]:
    """Return the tensors of a file with the sum of the words of deltas of such weights.

    Raises:
        UpdateError: the weights are not float32.
    """
    if other := first_not_float32(specs):
        raise UpdateError(f"{other}; only float32 can be summed in secure aggregation")
    return {name: TensorSpec(f"uint{bits}", spec.shape) for name, spec in specs.items()}


def encoded_blocks(
    names: Sequence[str],
    deltas: WeightsSource,
    grid: FixedPointGrid,
    share: float,
    scale: float,
    metrics: ClientMetrics,
) -> Iterator[NDArray[Any]]:
    """Yield the words of a client's deltas and metrics in blocks, in the order of `names`; each is a new array.

    Args:
        names: of `masked_specs`.
        deltas: float32.
        grid: of the round.
        share: of the client in the mean.
        scale: factor for the deltas, by which they are clipped.
        metrics: of the client.
    """
    for name in names:
        if name == METRICS_TENSOR:
            yield encode_metrics(metrics, share)
            continue
        for start, length in _block_ranges(deltas.specs[name].size):
            block = np.empty(length, np.float32)
            deltas.read(name, start, block)
            yield grid.encode(block if scale == 1.0 else block.astype(np.float64) * scale, share)


def encode_metrics(metrics: ClientMetrics, share: float) -> NDArray[np.uint64]:
    """Return the words of a client's share in the mean of the metrics; larger ones than 2^36 are cut to that."""
    values = np.array([getattr(metrics, name) for name in _METRICS], np.float64)
    return np.rint(share * np.minimum(values, _METRICS_LIMIT) / _METRICS_STEP).astype(np.int64).view(np.uint64)


def decode_metrics(words: NDArray[np.uint64], total_share: float) -> ClientMetrics:
    """Return the mean metrics of a sum of words; impossible ones (`false_metrics`) are cut to the nearest possible."""
    values = np.clip(_mean_metrics(words, total_share), 0.0, _metric_bounds())
    found: dict[str, Any] = dict(zip(_METRICS, map(float, values), strict=True))
    return ClientMetrics(**found | {"local_steps": round(found["local_steps"])})


def false_metrics(words: NDArray[np.uint64], total_share: float) -> dict[str, float]:
    """Return the mean metrics that are no possible ones, by name: a client has sent words of something else."""
    values = _mean_metrics(words, total_share)
    return {
        name: float(value)
        for name, value, bound in zip(_METRICS, values, _metric_bounds(), strict=True)
        if not 0 <= value <= bound
    }


def _mean_metrics(words: NDArray[np.uint64], total_share: float) -> NDArray[np.float64]:
    return np.asarray(words.view(np.int64) * _METRICS_STEP / total_share)


def _metric_bounds() -> NDArray[np.float64]:
    """Return the largest mean of each metric: what a record holds, and what one client can send."""
    rules = (ClientMetrics.model_fields[name].metadata for name in _METRICS)
    return np.array([min(_METRICS_LIMIT, *(getattr(rule, "le", inf) for rule in found)) for found in rules])


class SummedWeights:
    """Source of the dense weights `global + mean delta`, for a file with the sum of the clients' words.

    Args:
        global_weights: float32; `specs` are theirs.
        file: an open file with the sum.
        summed: which grid it is on, and the share of the clients in it.

    Raises:
        UpdateError: the file does not hold a sum of deltas of such weights.
    """

    def __init__(self, global_weights: WeightsSource, file: WeightsFile, summed: SummedUpdates) -> None:
        if dict(file.specs) != summed_specs(global_weights.specs, summed.bits):
            raise UpdateError(f"{file.path}: its tensors are not those of a sum of updates of the global weights")
        self.specs = global_weights.specs
        self._global_weights, self._file = global_weights, file
        self._factor = summed.step / summed.share
        self._types = f"uint{summed.bits}", f"int{summed.bits}"

    def read(self, name: str, start: int, out: NDArray[Any]) -> None:
        """Fill `out` (one dimension) with values `start`, `start + 1`, ... of global + mean delta."""
        self._global_weights.read(name, start, out)
        words = np.empty(out.size, self._types[0])
        self._file.read(name, start, words)
        out += words.view(self._types[1]) * self._factor


def summed_blocks(files: Sequence[WeightsFile]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield name and summed words of each block of files with the same tensors, in the order in which they lie."""
    for name, spec in files[0].specs.items():
        for start, length in _block_ranges(spec.size):
            total, words = np.zeros(length, spec.dtype), np.empty(length, spec.dtype)
            for file in files:
                file.read(name, start, words)
                total += words
            yield name, total


def _block_ranges(size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, _BLOCK_VALUES):
        yield start, min(_BLOCK_VALUES, size - start)
