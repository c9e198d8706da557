"""Steps away from known weights in fewer bits: bf16 (`zk0.bf16`), or int8 with a scale for each channel (`zk0.int8`).

What a client sends is `update - global`, rounded to the nearest. A step is a hundred times smaller than a weight, and
so is what rounding loses of it. int8 loses a percent, so what it lost is added to the client's next step before that
is rounded (error feedback, arXiv 1901.09847): over the rounds nothing is lost.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.bf16 import from_bf16, to_bf16
from zk0.errors import CheckpointError, UpdateError
from zk0.int8 import from_int8, in_int8, int8_specs, read_int8, scales_in, to_int8
from zk0.records import WireFormat
from zk0.tensor_spec import TensorSpec, not_float32
from zk0.weights import Source, Weights, WeightsFile, open_weights, writing

Array = NDArray[Any]


def delta_specs(specs: Mapping[str, TensorSpec], wire: WireFormat) -> dict[str, TensorSpec]:
    """The tensors of a file that holds steps away from weights like these."""
    if wire == "bf16":
        return {name: TensorSpec("uint16", spec.shape) for name, spec in specs.items()}
    return int8_specs(specs)


def save_deltas(
    path: Path, weights: Weights, anchor: Weights, wire: WireFormat, lost: tuple[Path | None, Path] | None = None
) -> tuple[str, int]:
    """Write `weights - anchor` in few bits, a tensor at a time; digest and bytes of the file.

    `lost`: the file of what earlier rounding has lost (None: nothing yet), and where to write what is lost now.

    Raises:
        UpdateError: the weights are not float32, not finite, or too far away for 8 bits.
        CheckpointError: the file of what was lost does not fit.
    """
    specs = {name: TensorSpec.of(weights[name]) for name in weights}
    with ExitStack() as stack:
        writer = stack.enter_context(writing(path, delta_specs(specs, wire)))
        earlier = stack.enter_context(open_weights(lost[0])) if lost and lost[0] else None
        if earlier is not None and earlier.specs != specs:
            raise CheckpointError(f"{earlier.path}: holds other tensors than are sent; delete it to begin anew")
        later = stack.enter_context(writing(lost[1], specs)) if lost else None
        steps = _Steps(weights, anchor, earlier)
        few_bits = map(to_bf16, map(steps.of, writer.names)) if wire == "bf16" else in_int8(writer.names, steps.of)
        for values in few_bits:
            writer.write(values)
        for name in later.names if later else ():
            assert later is not None
            later.write(steps.of(name) - _rounded(steps, name, wire))
    return writer.digest, writer.bytes


class DeltaWeights:
    """The dense weights that steps in few bits lead to, read a block at a time; `specs` are those of `anchor`.

    Raises:
        UpdateError: the file does not hold steps away from such weights.
    """

    def __init__(self, anchor: Source, file: WeightsFile, wire: WireFormat) -> None:
        expected = delta_specs(anchor.specs, wire)
        if file.specs != expected:
            names = sorted(n for n in file.specs.keys() | expected.keys() if file.specs.get(n) != expected.get(n))
            name = names[0]
            raise UpdateError(
                f"{len(names)} tensors are not those of {wire} steps; first {name}: found "
                f"{file.specs.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
            )
        if other := not_float32(anchor.specs):
            raise UpdateError(f"{other}; only float32 is sent in few bits")
        self.specs = anchor.specs
        self._anchor, self._file, self._wire = anchor, file, wire
        self._scales = {name: scales_in(file, name) for name in anchor.specs} if wire == "int8" else {}

    def read(self, name: str, start: int, out: Array) -> None:
        """Fill `out` (one dimension) with values `start`, `start + 1`, ... of anchor + step, summed in float32."""
        self._anchor.read(name, start, out)
        if self._wire == "bf16":
            halves = np.empty(out.size, np.uint16)
            self._file.read(name, start, halves)
            out += from_bf16(halves)
            return
        out += read_int8(self._file, self._scales[name], name, start, out.size)


class _Steps:
    """What a client has to say of each tensor, that which rounding has lost before included."""

    def __init__(self, weights: Weights, anchor: Weights, earlier: Weights | None) -> None:
        self._weights, self._anchor, self._earlier = weights, anchor, earlier
        self._last: tuple[str, NDArray[np.float32]] = ("", np.empty(0, np.float32))

    def of(self, name: str) -> NDArray[np.float32]:
        if self._last[0] != name:
            weights = self._weights[name]
            if weights.dtype != np.float32:
                raise UpdateError(f"tensor {name} is {weights.dtype}, expected float32: only that is sent in few bits")
            step = np.asarray(weights - self._anchor[name])
            if self._earlier is not None:
                step = step + self._earlier[name]
            if not np.isfinite(step).all():
                raise UpdateError(f"tensor {name} holds numbers that are not finite")
            self._last = name, step
        return self._last[1]


def _rounded(steps: _Steps, name: str, wire: WireFormat) -> NDArray[np.float32]:
    """The step of a tensor as the server reads it."""
    step = steps.of(name)
    if wire == "bf16":
        return from_bf16(to_bf16(step))
    return from_int8(*to_int8(step))
