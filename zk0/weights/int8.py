"""float32 tensors in a quarter of the bytes: levels -127..127 and one scale per channel (arXiv 1511.04561).

A tensor is treated as a matrix, its first dimension by the product of the others. Its channels are the rows or the
columns, whichever are fewer. A scale is a code of one byte for 2 to the power of 4, 3 7/8, 3 6/8, ..., so levels are at
most 9 % wider than necessary.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.errors import CheckpointError, UpdateError
from zk0.weights.digests import open_checked
from zk0.weights.files import LazyWeights, WeightsFile, WeightsSource, open_weights
from zk0.weights.tensor_spec import TensorSpec, first_not_float32
from zk0.weights.writer import open_weights_writer

_SCALE_SUFFIX = ":scale"
_LEVELS = 127
_ZERO_CODE = 255
"""The code of a channel that holds zeros only."""
_SCALES = np.append(np.exp2(4 - np.arange(_ZERO_CODE) / 8), 0.0).astype(np.float32)


def to_int8(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """Return the levels, in the shape of the values, and the scale code of each channel.

    Raises:
        UpdateError: a value is beyond 2032, the largest that has a scale.

    >>> levels, scales = to_int8(np.array([[1.27, -0.634, 0.001], [0, 0, 0]], np.float32))
    >>> levels.tolist(), scales.tolist()
    ([[125, -63, 0], [0, 0, 0]], [85, 255])
    >>> round(125 * 2 ** (4 - 85 / 8), 3)
    1.266
    """
    matrix = values.reshape(_matrix_shape(values.shape))
    along = int(_channels_are_rows(matrix.shape))
    needed = np.abs(matrix).max(axis=along, initial=0.0).astype(np.float64) / _LEVELS  # float32 would underflow
    if needed.size and needed.max() > _SCALES[0]:
        raise UpdateError(f"{needed.max() * _LEVELS:g} is too large for int8, which holds {_SCALES[0] * _LEVELS:g}")
    with np.errstate(divide="ignore"):
        codes = np.clip(np.floor(8 * (4 - np.log2(needed))), 0, _ZERO_CODE - 1)
    codes = np.where(needed > 0, codes, _ZERO_CODE).astype(np.uint8)
    scales = np.expand_dims(np.where(needed > 0, _SCALES[codes], 1), along)
    levels = np.clip(np.rint(matrix / scales), -_LEVELS, _LEVELS).astype(np.int8)
    return levels.reshape(values.shape), codes


def from_int8(levels: NDArray[np.int8], codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the values of levels, in their shape.

    >>> from_int8(np.array([[125, -63]], np.int8), np.array([85], np.uint8)).round(3)
    array([[ 1.266, -0.638]], dtype=float32)
    """
    matrix = levels.reshape(_matrix_shape(levels.shape))
    scales = np.expand_dims(_SCALES[codes], int(_channels_are_rows(matrix.shape)))
    return np.asarray(matrix * scales, np.float32).reshape(levels.shape)


def int8_specs(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Return the tensors of a file that holds such tensors in 8 bits: levels, and scale codes."""
    levels = {name: TensorSpec("int8", spec.shape) for name, spec in specs.items()}
    return levels | {
        name + _SCALE_SUFFIX: TensorSpec("uint8", (min(_matrix_shape(spec.shape)) if spec.size else 0,))
        for name, spec in specs.items()
    }


def int8_tensors(names: Iterable[str], read: Callable[[str], NDArray[np.float32]]) -> Iterator[NDArray[Any]]:
    """Yield what a file of `int8_specs` holds under each of its names.

    Args:
        names: of levels and scale codes, in the order of the file. A tensor whose names are adjacent is quantized once.
        read: returns a float32 tensor by its name.

    Raises:
        UpdateError: a value is too large; names its tensor.
    """
    for tensor_name, group in groupby(names, lambda name: name.removesuffix(_SCALE_SUFFIX)):
        try:
            levels, codes = to_int8(read(tensor_name))
        except UpdateError as e:
            raise UpdateError(f"tensor {tensor_name}: {e}") from e
        for name in group:
            yield codes if name.endswith(_SCALE_SUFFIX) else levels


def read_int8(file: WeightsSource, codes: NDArray[np.uint8], name: str, start: int, count: int) -> NDArray[np.float32]:
    """Return `count` values of a flat tensor from index `start`; `codes` are those of all its channels."""
    levels = np.empty(count, np.int8)
    file.read(name, start, levels)
    rows, columns = _matrix_shape(file.specs[name].shape)
    if _channels_are_rows((rows, columns)):
        first = start // max(1, columns)
        scales = np.repeat(_SCALES[codes[first : -(-(start + count) // max(1, columns))]], columns)
        skipped = start - first * columns
    else:
        skipped = start % columns
        scales = np.resize(_SCALES[codes], skipped + count)
    return np.asarray(levels * scales[skipped : skipped + count], np.float32)


def channel_scales(file: WeightsFile, name: str) -> NDArray[np.uint8]:
    """Return the scale codes of all channels of a tensor in a file."""
    return file[name + _SCALE_SUFFIX]


def save_int8(source: Path, target: Path) -> None:
    """Write the float32 weights of a file in 8 bits; memory is a tensor.

    Raises:
        CheckpointError: a tensor is not float32, or holds a value that is too large.
    """
    with open_weights(source) as file:
        if other := first_not_float32(file.specs):
            raise CheckpointError(f"{source}: {other}, expected float32")
        with open_weights_writer(target, int8_specs(file.specs)) as writer:
            try:
                for values in int8_tensors(writer.names, file.__getitem__):
                    writer.write(values)
            except UpdateError as e:
                raise CheckpointError(f"{source}: {e}; use federation.wire_down bf16") from e


@contextmanager
def open_int8(path: Path, expected: str) -> Iterator[LazyWeights]:
    """Open a file that `save_int8` wrote; its weights are read as float32, a tensor at a time.

    Raises:
        CheckpointError: no file, not a complete one, or its digest is not `expected`.
    """
    with open_checked(path, expected) as file:
        yield _Int8Weights(path, file)


class _Int8Weights(LazyWeights):
    def __init__(self, path: Path, file: WeightsFile) -> None:
        self.specs = {n: TensorSpec("float32", s.shape) for n, s in file.specs.items() if not n.endswith(_SCALE_SUFFIX)}
        self._file = file
        if dict(file.specs) != int8_specs(self.specs):
            raise CheckpointError(f"{path}: its tensors are not int8 levels with the scales of their channels")

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return from_int8(self._file[name], channel_scales(self._file, name))


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))


def _channels_are_rows(shape: tuple[int, ...]) -> bool:
    return shape[0] <= shape[1]
