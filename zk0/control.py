"""Control variates of SCAFFOLD (arXiv 1910.06378) beside weights in one file: which tensor is which."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from zk0.errors import CheckpointError, UpdateError
from zk0.tensor_spec import TensorSpec
from zk0.weights import WeightsFile, open_weights, writing

CONTROL = "control:"
"""What the name of a weight begins with where its control variate is meant."""


def with_control(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """The tensors of a file with weights and their control variates."""
    return {**specs, **{CONTROL + name: spec for name, spec in specs.items()}}


def save_with_control(weights: Path, control: Path, target: Path) -> None:
    """Write one file of the weights in one file and their control variates in another; memory is a block.

    Raises:
        CheckpointError: the tensors of the two are not the same.
    """
    with open_weights(weights) as one, open_weights(control) as other:
        if one.specs != other.specs:
            raise CheckpointError(f"{control}: its tensors are not those of {weights}")
        with writing(target, with_control(one.specs)) as writer:
            for name in writer.names:
                file = other if name.startswith(CONTROL) else one
                for block in file.blocks(name.removeprefix(CONTROL)):
                    writer.write(block)


class Half:
    """The weights or the control variates in a file that holds both; `specs` are those of the weights.

    Raises:
        UpdateError: the file does not hold both for such weights.
    """

    def __init__(self, file: WeightsFile, specs: Mapping[str, TensorSpec], prefix: str = "") -> None:
        if file.specs != with_control(specs):
            names = sorted(n for n in file.specs.keys() ^ with_control(specs).keys())
            raise UpdateError(
                f"{file.path}: {len(names)} tensors are not weights with their control variates; "
                f"first: {names[0] if names else 'of another shape'}"
            )
        self.specs = specs
        self._file, self._prefix = file, prefix

    def read(self, name: str, start: int, out: NDArray[Any]) -> None:
        """Fill `out` (one dimension) with values `start`, `start + 1`, ... of the flat tensor."""
        self._file.read(self._prefix + name, start, out)
