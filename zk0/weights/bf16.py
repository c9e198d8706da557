"""float32 weights in half the bytes: bfloat16, the upper 16 bits of a float32, rounded to nearest.

numpy has no such dtype; in a file the values are uint16.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zk0.errors import CheckpointError
from zk0.weights.digests import open_checked
from zk0.weights.files import LazyWeights, WeightsFile, open_weights
from zk0.weights.tensor_spec import TensorSpec, first_not_float32
from zk0.weights.writer import open_weights_writer


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the bits of bfloat16 values, rounded to nearest, ties to even.

    >>> [hex(bits) for bits in to_bf16(np.array([1.0, 1.00390625, 1.01171875, -2.0], np.float32))]
    ['0x3f80', '0x3f80', '0x3f82', '0xc000']
    """
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the float32 values of bfloat16 bits.

    >>> from_bf16(np.array([0x3F82], np.uint16))
    array([1.015625], dtype=float32)
    """
    return (bits.astype(np.uint32) << 16).view(np.float32)


def save_bf16(source: Path, target: Path) -> None:
    """Write the float32 weights of a file as bfloat16; memory is a block.

    Raises:
        CheckpointError: a tensor is not float32.
    """
    with open_weights(source) as file:
        if other := first_not_float32(file.specs):
            raise CheckpointError(f"{source}: {other}, expected float32")
        specs = {name: replace(spec, dtype="uint16") for name, spec in file.specs.items()}
        with open_weights_writer(target, specs) as writer:
            for name in writer.names:
                for block in file.blocks(name):
                    writer.write(to_bf16(block))


@contextmanager
def open_bf16(path: Path, expected: str) -> Iterator[LazyWeights]:
    """Open a file that `save_bf16` wrote; its weights are read as float32, a tensor at a time.

    Raises:
        CheckpointError: no file, not a complete one, or its digest is not `expected`.
    """
    with open_checked(path, expected) as file:
        yield _Bf16Weights(file)


class _Bf16Weights(LazyWeights):
    def __init__(self, file: WeightsFile) -> None:
        self.specs = {name: TensorSpec("float32", spec.shape) for name, spec in file.specs.items()}
        self._file = file

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return from_bf16(self._file[name])
