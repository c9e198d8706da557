"""float32 tensors in a quarter of the bytes: levels -127..127 and the scale of each channel (arXiv 1511.04561).

A tensor is a matrix of its first dimension and all the others; its channels are the rows or the columns, whichever are
fewer. A scale is a byte: 2 to the power of 4, 3 7/8, 3 6/8, ..., so levels are at most 9 % wider than they need be.
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
from zk0.tensor_spec import TensorSpec, not_float32
from zk0.weights import LazyWeights, Source, WeightsFile, open_checked, open_weights, writing

_SCALE = ":scale"
_LEVELS = 127
_NOTHING = 255
"""The scale of a channel that holds zeros only."""
_SCALES = np.append(np.exp2(4 - np.arange(_NOTHING) / 8), 0.0).astype(np.float32)
Array = NDArray[Any]


def to_int8(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """Levels in the shape of the values, and the scale of each channel.

    Raises:
        UpdateError: a value is beyond 2032, the largest that has a scale.

    >>> levels, scales = to_int8(np.array([[1.27, -0.634, 0.001], [0, 0, 0]], np.float32))
    >>> levels.tolist(), scales.tolist()
    ([[125, -63, 0], [0, 0, 0]], [85, 255])
    >>> round(125 * 2 ** (4 - 85 / 8), 3)
    1.266
    """
    matrix = values.reshape(_matrix(values.shape))
    along = int(_by_row(matrix.shape))
    needed = np.abs(matrix).max(axis=along, initial=0.0).astype(np.float64) / _LEVELS  # float32 would lose the least
    if needed.size and needed.max() > _SCALES[0]:
        raise UpdateError(f"{needed.max() * _LEVELS:g} is too large for int8, which holds {_SCALES[0] * _LEVELS:g}")
    with np.errstate(divide="ignore"):
        codes = np.clip(np.floor(8 * (4 - np.log2(needed))), 0, _NOTHING - 1)
    codes = np.where(needed > 0, codes, _NOTHING).astype(np.uint8)
    scales = np.expand_dims(np.where(needed > 0, _SCALES[codes], 1), along)
    levels = np.clip(np.rint(matrix / scales), -_LEVELS, _LEVELS).astype(np.int8)
    return levels.reshape(values.shape), codes


def from_int8(levels: NDArray[np.int8], scales: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The values of levels.

    >>> from_int8(np.array([[125, -63]], np.int8), np.array([85], np.uint8)).round(3)
    array([[ 1.266, -0.638]], dtype=float32)
    """
    matrix = levels.reshape(_matrix(levels.shape))
    wide = np.expand_dims(_SCALES[scales], int(_by_row(matrix.shape)))
    return np.asarray(matrix * wide, np.float32).reshape(levels.shape)


def int8_specs(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """The tensors of a file that holds tensors like these in 8 bits."""
    levels = {name: TensorSpec("int8", spec.shape) for name, spec in specs.items()}
    return levels | {
        name + _SCALE: TensorSpec("uint8", (min(_matrix(spec.shape)) if spec.size else 0,))
        for name, spec in specs.items()
    }


def in_int8(names: Iterable[str], read: Callable[[str], NDArray[np.float32]]) -> Iterator[Array]:
    """What such a file holds under each of its names, of tensors that are read by theirs.

    A tensor is rounded once where its levels and scales lie side by side.

    Raises:
        UpdateError: names a tensor with a value that is too large.
    """
    for of, group in groupby(names, lambda name: name.removesuffix(_SCALE)):
        try:
            levels, scales = to_int8(read(of))
        except UpdateError as e:
            raise UpdateError(f"tensor {of}: {e}") from e
        for name in group:
            yield scales if name.endswith(_SCALE) else levels


def read_int8(file: Source, scales: NDArray[np.uint8], name: str, start: int, count: int) -> NDArray[np.float32]:
    """`count` values of a flat tensor, from `start` on; `scales` are all of that tensor's."""
    levels = np.empty(count, np.int8)
    file.read(name, start, levels)
    rows, columns = _matrix(file.specs[name].shape)
    if _by_row((rows, columns)):
        first = start // max(1, columns)
        wide = np.repeat(_SCALES[scales[first : -(-(start + count) // max(1, columns))]], columns)
        skipped = start - first * columns
    else:
        skipped = start % columns
        wide = np.resize(_SCALES[scales], skipped + count)
    return np.asarray(levels * wide[skipped : skipped + count], np.float32)


def scales_in(file: WeightsFile, name: str) -> NDArray[np.uint8]:
    """All scales of a tensor in a file."""
    return file[name + _SCALE]


def save_int8(source: Path, target: Path) -> None:
    """Write the weights of a file in a quarter of the bytes; memory is a tensor.

    Raises:
        CheckpointError: a tensor is not float32, or too large a number for 8 bits.
    """
    with open_weights(source) as file:
        if other := not_float32(file.specs):
            raise CheckpointError(f"{source}: {other}, expected float32")
        with writing(target, int8_specs(file.specs)) as writer:
            try:
                for values in in_int8(writer.names, file.__getitem__):
                    writer.write(values)
            except UpdateError as e:
                raise CheckpointError(f"{source}: {e}; use federation.wire_down bf16") from e


@contextmanager
def open_int8(path: Path, expected: str) -> Iterator[LazyWeights]:
    """The weights of such a file as float32, a tensor at a time.

    Raises:
        CheckpointError: no file, not a whole one, or its digest is not `expected`.
    """
    with open_checked(path, expected) as file:
        yield _Widened(path, file)


class _Widened(LazyWeights):
    def __init__(self, path: Path, file: WeightsFile) -> None:
        self.specs = {n: TensorSpec("float32", s.shape) for n, s in file.specs.items() if not n.endswith(_SCALE)}
        self._file = file
        if dict(file.specs) != int8_specs(self.specs):
            raise CheckpointError(f"{path}: its tensors are not levels with the scales of their channels")

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return from_int8(self._file[name], scales_in(self._file, name))


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))


def _by_row(matrix: tuple[int, ...]) -> bool:
    return matrix[0] <= matrix[1]
