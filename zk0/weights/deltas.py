"""Deltas of updates in fewer bits: bf16 (`zk0.weights.bf16`), or int8 with a scale per channel (`zk0.weights.int8`).

A client sends `update - global`, quantized by rounding to nearest. A delta is a hundred times smaller than a weight,
and so is its rounding error. int8 loses a percent of a delta, so the client adds the rounding error to its next delta
before it quantizes that (error feedback, arXiv 1901.09847): over the rounds the errors cancel.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.errors import CheckpointError, UpdateError
from zk0.records import DigestAlgorithm, WireDtype
from zk0.weights.bf16 import from_bf16, to_bf16
from zk0.weights.files import Weights, WeightsFile, WeightsSource, open_weights
from zk0.weights.int8 import channel_scales, from_int8, int8_specs, int8_tensors, read_int8, to_int8
from zk0.weights.tensor_spec import TensorSpec, first_not_float32
from zk0.weights.writer import open_weights_writer


@dataclass(frozen=True)
class ErrorFeedback:
    """Files of a client's rounding errors.

    Attributes:
        previous: errors of earlier rounds, which are added to this delta; None: there are none yet.
        current: where the errors of this delta are written.
    """

    previous: Path | None
    current: Path


def delta_specs(specs: Mapping[str, TensorSpec], wire: WireDtype) -> dict[str, TensorSpec]:
    """Return the tensors of a file that holds quantized deltas of such weights."""
    if wire == "bf16":
        return {name: TensorSpec("uint16", spec.shape) for name, spec in specs.items()}
    return int8_specs(specs)


def save_deltas(
    path: Path,
    weights: Weights,
    global_weights: Weights,
    wire: WireDtype,
    error_feedback: ErrorFeedback | None = None,
    algorithm: DigestAlgorithm = "blake3",
) -> tuple[str, int]:
    """Write `weights - global_weights`, quantized, a tensor at a time; return digest and bytes of the file.

    Args:
        path: the file.
        weights: float32, as trained.
        global_weights: float32, as the client received them.
        wire: bf16 or int8.
        error_feedback: None: rounding errors are dropped.
        algorithm: of the digest.

    Raises:
        UpdateError: the weights are not float32, not finite, or too far away for 8 bits.
        CheckpointError: the file of rounding errors holds other tensors.
    """
    specs = {name: TensorSpec.of(weights[name]) for name in weights}
    with ExitStack() as stack:
        writer = stack.enter_context(open_weights_writer(path, delta_specs(specs, wire), algorithm=algorithm))
        previous, remaining = None, None
        if error_feedback and error_feedback.previous:
            previous = stack.enter_context(open_weights(error_feedback.previous))
            if previous.specs != specs:
                raise CheckpointError(f"{previous.path}: holds other tensors than the update; delete the file")
        if error_feedback:
            remaining = stack.enter_context(open_weights_writer(error_feedback.current, specs))
        deltas = _Deltas(weights, global_weights, previous)
        as_bf16 = (to_bf16(deltas.of(name)) for name in writer.names)
        for values in as_bf16 if wire == "bf16" else int8_tensors(writer.names, deltas.of):
            writer.write(values)
        for name in remaining.names if remaining else ():
            assert remaining is not None
            remaining.write(deltas.of(name) - _quantized(deltas.of(name), wire))
    return writer.digest, writer.bytes


def save_plain_deltas(
    path: Path, weights: Weights, global_weights: Weights, reuse_file: Path, algorithm: DigestAlgorithm = "blake3"
) -> tuple[str, int]:
    """Write `weights - global_weights` as float32; return the digest and the bytes of the file.

    Args:
        path: the file.
        weights: trained weights.
        global_weights: what they were trained from.
        reuse_file: see `open_weights_writer`.
        algorithm: of the digest.

    Raises:
        UpdateError: the weights are not float32, or not finite.
    """
    specs = {name: TensorSpec.of(weights[name]) for name in weights}
    deltas = _Deltas(weights, global_weights, None)
    with open_weights_writer(path, specs, False, reuse_file, algorithm) as writer:
        for name in writer.names:
            writer.write(deltas.of(name))
    return writer.digest, writer.bytes


class DeltaWeights:
    """Source of the dense weights `global_weights + delta`, for a file of quantized deltas.

    Args:
        global_weights: float32; `specs` are theirs.
        file: an open file that `save_deltas` wrote.
        wire: bf16 or int8.

    Raises:
        UpdateError: the file does not hold deltas of such weights.
    """

    def __init__(self, global_weights: WeightsSource, file: WeightsFile, wire: WireDtype) -> None:
        expected = delta_specs(global_weights.specs, wire)
        if file.specs != expected:
            names = sorted(n for n in file.specs.keys() | expected.keys() if file.specs.get(n) != expected.get(n))
            name = names[0]
            raise UpdateError(
                f"{len(names)} tensors are not those of {wire} deltas; first {name}: found "
                f"{file.specs.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
            )
        if other := first_not_float32(global_weights.specs):
            raise UpdateError(f"{other}; only float32 can be sent as {wire} deltas")
        self.specs = global_weights.specs
        self._global_weights, self._file, self._wire = global_weights, file, wire
        self._scales = {name: channel_scales(file, name) for name in self.specs} if wire == "int8" else {}

    def read(self, name: str, start: int, out: NDArray[Any]) -> None:
        """Fill `out` (one dimension) with values `start`, `start + 1`, ... of global + delta, summed in float32."""
        self._global_weights.read(name, start, out)
        if self._wire == "bf16":
            bits = np.empty(out.size, np.uint16)
            self._file.read(name, start, bits)
            out += from_bf16(bits)
            return
        out += read_int8(self._file, self._scales[name], name, start, out.size)


class _Deltas:
    """Each tensor's delta, with the rounding errors of earlier rounds added."""

    def __init__(self, weights: Weights, global_weights: Weights, errors: Weights | None) -> None:
        self._weights, self._global_weights, self._errors = weights, global_weights, errors
        self._last: tuple[str, NDArray[np.float32]] = ("", np.empty(0, np.float32))

    def of(self, name: str) -> NDArray[np.float32]:
        if self._last[0] != name:
            weights = self._weights[name]
            if weights.dtype != np.float32:
                raise UpdateError(f"tensor {name} is {weights.dtype}; only float32 can be sent as a delta")
            delta = np.asarray(weights - self._global_weights[name])
            if self._errors is not None:
                delta = delta + self._errors[name]
            if not np.isfinite(delta).all():
                raise UpdateError(f"tensor {name} holds numbers that are not finite")
            self._last = name, delta
        return self._last[1]


def _quantized(delta: NDArray[np.float32], wire: WireDtype) -> NDArray[np.float32]:
    """Return a delta as the server reads it."""
    return from_bf16(to_bf16(delta)) if wire == "bf16" else from_int8(*to_int8(delta))
