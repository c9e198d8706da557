"""Weights on disk, read a tensor or a block at a time.

Files are safetensors without metadata, so the same weights always give the same bytes.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from zk0.errors import CheckpointError
from zk0.weights.tensor_spec import TensorSpec, header_bytes, read_header

Weights = Mapping[str, NDArray[Any]]
"""Arrays by name: in memory, or read when they are asked for (`LazyWeights`)."""

_BLOCK_BYTES = 1 << 20
EXTRA_HEADER_BYTES = 1 << 16
"""Bytes that a header of other software may be longer than ours."""


class WeightsSource(Protocol):
    """Weights that several threads can read a block at a time: of a file, or computed from one."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Name, dtype and shape of each tensor."""

    def read(self, name: str, start: int, out: NDArray[Any]) -> None:
        """Fill `out` (one dimension, the tensor's dtype) with values `start`, `start + 1`, ... of the flat tensor.

        Raises:
            CheckpointError: the values cannot be read.
        """


class LazyWeights(Weights):
    """Weights whose names and shapes are known, and whose values are read a tensor at a time."""

    specs: Mapping[str, TensorSpec]

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


class WeightsFile(LazyWeights):
    """Weights in an open file: `file[name]` reads a tensor, `read` a block of one.

    Bytes are read, not memory-mapped: resident memory is that of the caller's buffers, and a file that is truncated
    while it is open raises a CheckpointError instead of ending the process with SIGBUS.
    """

    def __init__(self, path: Path, handle: BinaryIO, specs: Mapping[str, TensorSpec], offsets: Mapping[str, int]):
        self.path = path
        self.specs = specs
        self._handle = handle
        self._offsets = offsets

    def __getitem__(self, name: str) -> NDArray[Any]:
        spec = self.specs[name]
        flat = np.empty(spec.size, dtype=np.dtype(spec.dtype))
        self.read(name, 0, flat)
        return flat.reshape(spec.shape)

    def blocks(self, name: str, block_bytes: int = _BLOCK_BYTES) -> Iterator[NDArray[Any]]:
        """Yield the values of a flat tensor in blocks; each block overwrites the one before."""
        spec = self.specs[name]
        buffer = np.empty(min(spec.size, block_bytes // np.dtype(spec.dtype).itemsize), spec.dtype)
        for start in range(0, spec.size, max(1, buffer.size)):
            block = buffer[: spec.size - start]
            self.read(name, start, block)
            yield block

    def read(self, name: str, start: int, out: NDArray[Any]) -> None:
        """Fill `out` (one dimension, the tensor's dtype) with values `start`, `start + 1`, ... of the flat tensor.

        Raises:
            CheckpointError: the file ends before `out` is full, or the disk failed.
        """
        spec = self.specs[name]
        if out.ndim != 1 or out.dtype != spec.dtype or not 0 <= start <= start + out.size <= spec.size:
            raise ValueError(f"{name}: {out.size} {out.dtype.name} values from {start}, expected within {spec}")
        at, left = self._offsets[name] + start * out.itemsize, memoryview(out.view(np.uint8))
        while left:
            try:
                count = os.preadv(self._handle.fileno(), [left], at)
            except OSError as e:
                raise CheckpointError(f"{self.path}: cannot be read ({e.strerror})") from e
            if count == 0:
                raise CheckpointError(f"{self.path}: ends inside tensor {name}: the file was truncated while open")
            at, left = at + count, left[count:]


def check_header_size(path: Path, specs: Mapping[str, TensorSpec]) -> None:
    """Check that the header of a file that came from outside is no longer than one of these tensors, before it is read.

    To read a header of very many tensors takes seconds and hundreds of megabytes.

    Raises:
        CheckpointError: it is longer, or the file cannot be read.
    """
    largest = header_bytes(specs) + EXTRA_HEADER_BYTES
    try:
        with path.open("rb") as handle:
            found = int.from_bytes(handle.read(8), "little")
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read ({e.strerror or e}); expected a safetensors file") from e
    if found > largest:
        raise CheckpointError(f"{path.name}: a header of {found} bytes, expected at most {largest}")


@contextmanager
def open_weights(path: Path) -> Iterator[WeightsFile]:
    """Open a file of weights, in the order in which they are stored; only the header is read.

    Raises:
        CheckpointError: no file, or not a complete safetensors file.
    """
    try:
        with safe_open(str(path), framework="np"):
            pass  # safetensors checks lengths, offsets and gaps
        handle = path.open("rb")
    except SafetensorError as e:
        raise CheckpointError(f"{path}: not a complete safetensors file ({e})") from e
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read ({e.strerror or e}); expected a safetensors file") from e
    with handle:
        specs, offsets = read_header(path, handle)
        yield WeightsFile(path, handle, specs, offsets)
