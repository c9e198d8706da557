"""Files that hold weights and, beside each, its control variate of SCAFFOLD (arXiv 1910.06378)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from zk0.errors import CheckpointError, UpdateError
from zk0.weights.files import WeightsFile, open_weights
from zk0.weights.tensor_spec import TensorSpec
from zk0.weights.writer import open_weights_writer

CONTROL_PREFIX = "control:"
"""The name of a weight's control variate is this prefix and the name of the weight. It is part of digests."""


def specs_with_control_variates(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Return the tensors of a file that holds such weights and their control variates."""
    return {**specs, **{CONTROL_PREFIX + name: spec for name, spec in specs.items()}}


def save_with_control_variates(weights: Path, control_variates: Path, target: Path) -> None:
    """Merge a file of weights and a file of control variates into one; memory is a block.

    Args:
        weights: the file of the weights.
        control_variates: the file of their control variates, under the names of the weights.
        target: the file with both.

    Raises:
        CheckpointError: the tensors of the two files differ.
    """
    with open_weights(weights) as weights_file, open_weights(control_variates) as control_file:
        if weights_file.specs != control_file.specs:
            raise CheckpointError(f"{control_variates}: its tensors are not those of {weights}")
        with open_weights_writer(target, specs_with_control_variates(weights_file.specs)) as writer:
            for name in writer.names:
                file = control_file if name.startswith(CONTROL_PREFIX) else weights_file
                for block in file.blocks(name.removeprefix(CONTROL_PREFIX)):
                    writer.write(block)


class PrefixedTensors:
    """Source of the weights, or of the control variates, in a file that holds both.

    Args:
        file: an open file.
        specs: the weights that the file must hold beside their control variates.
        prefix: "" for the weights, `CONTROL_PREFIX` for the control variates.

    Raises:
        UpdateError: the file holds other tensors.
    """

    def __init__(self, file: WeightsFile, specs: Mapping[str, TensorSpec], prefix: str = "") -> None:
        expected = specs_with_control_variates(specs)
        if file.specs != expected:
            names = sorted(file.specs.keys() ^ expected.keys())
            raise UpdateError(
                f"{file.path}: {len(names)} tensors are not weights with their control variates; "
                f"first: {names[0] if names else 'of another shape'}"
            )
        self.specs = specs
        self._file, self._prefix = file, prefix

    def read(self, name: str, start: int, out: NDArray[Any]) -> None:
        """Fill `out` (one dimension) with values `start`, `start + 1`, ... of the flat tensor."""
        self._file.read(self._prefix + name, start, out)
