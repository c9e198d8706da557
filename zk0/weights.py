"""Weights on disk: written whole or not at all, named by a digest, read a tensor or a block at a time.

Files are safetensors without metadata: the same weights give the same bytes.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from zk0.errors import CheckpointError

Weights = Mapping[str, NDArray[Any]]

_CODES = {
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    "bool": "BOOL",
}
_DTYPES = {code: name for name, code in _CODES.items()}
_RESERVED = "__metadata__"


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor is without its values; `dtype` is numpy's name, such as float32."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: NDArray[Any]) -> Self:
        """The spec of an array in memory."""
        return cls(tensor.dtype.name, tensor.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return self.size * np.dtype(self.dtype).itemsize


class Source(Protocol):
    """Weights that can be read a block at a time, wherever they come from."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Name, dtype and shape of each tensor."""

    def read(self, name: str, start: int, out: NDArray[Any]) -> None:
        """Fill `out` (one dimension, the tensor's dtype) with values `start`, `start + 1`, ... of the flat tensor.

        Raises:
            CheckpointError: the values cannot be had.
        """


class WeightsFile(Weights):
    """Weights that stay on disk: `file[name]` reads one tensor, `read` a block of one.

    Bytes are read, not mapped: resident memory stays that of the caller's buffers, and a file that is cut short
    while it is open raises a CheckpointError instead of killing the process with SIGBUS.
    """

    def __init__(self, path: Path, handle: BinaryIO, specs: Mapping[str, TensorSpec], offsets: Mapping[str, int]):
        self.path = path
        self.specs = specs
        self._handle = handle
        self._offsets = offsets

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __getitem__(self, name: str) -> NDArray[Any]:
        spec = self.specs[name]
        flat = np.empty(spec.size, dtype=np.dtype(spec.dtype))
        self.read(name, 0, flat)
        return flat.reshape(spec.shape)

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
                raise CheckpointError(f"{self.path}: ends inside tensor {name}: truncated while it was read")
            at, left = at + count, left[count:]


def digest(weights: Weights) -> str:
    """SHA-256 (64 hex digits) of the weights, whatever their order and wherever they lie.

    Canonical form: for each name in ascending order of code points, the UTF-8 bytes of the JSON array
    `["name","dtype",[dimension,...]]` (no blanks, non-ASCII as it is; dtype as numpy names it), a line feed, then
    the values in C order, little-endian.

    Raises:
        CheckpointError: a dtype that a file cannot hold.

    >>> digest({"w": np.zeros((2, 3), np.float32)})[:12]
    '2dee88808c11'
    >>> hashlib.sha256(b'["w","float32",[2,3]]\\n' + bytes(24)).hexdigest()[:12]
    '2dee88808c11'
    """
    sha = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        spec = _spec(name, tensor)
        title = json.dumps([name, spec.dtype, list(spec.shape)], ensure_ascii=False, separators=(",", ":"))
        sha.update(title.encode() + b"\n")
        sha.update(_flat_bytes(tensor))
    return sha.hexdigest()


def save_weights(path: Path, weights: Weights) -> tuple[str, int]:
    """Write weights whole or not at all; parents are made. Digest and bytes of the file.

    Raises:
        CheckpointError: a dtype or a name that a file cannot hold.
        OSError: the disk is full or refuses.
    """
    with writing(path, {name: _spec(name, tensor) for name, tensor in weights.items()}) as writer:
        for name in writer.names:
            writer.write(weights[name])
    return writer.digest, writer.bytes


def load_weights(path: Path, expected: str | None = None) -> dict[str, NDArray[Any]]:
    """All weights of a file, in memory.

    Raises:
        CheckpointError: no file, not a whole safetensors file, or its digest is not `expected`.
    """
    with open_weights(path) as file:
        weights = dict(file)
    if expected is not None and (found := digest(weights)) != expected:
        raise CheckpointError(
            f"{path}: digest {found[:12]}, expected {expected[:12]}: not the weights that were recorded"
        )
    return weights


@contextmanager
def open_weights(path: Path) -> Iterator[WeightsFile]:
    """The weights of a file without reading their values yet, in the order in which they lie.

    Raises:
        CheckpointError: no file, or not a whole safetensors file.
    """
    try:
        with safe_open(str(path), framework="np"):
            pass  # lengths, offsets and holes are checked there
        handle = path.open("rb")
    except SafetensorError as e:
        raise CheckpointError(f"{path}: not a whole safetensors file ({e})") from e
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read ({e.strerror or e}); expected a safetensors file") from e
    with handle:
        specs, offsets = _header(path, handle)
        yield WeightsFile(path, handle, specs, offsets)


class WeightsWriter:
    """Tensors written one after the other, in the order of `names`; `digest` and `bytes` are known at the end."""

    def __init__(self, handle: BinaryIO, names: tuple[str, ...]):
        self.names = names
        self.digest = ""
        self.bytes = 0
        self._handle = handle

    def write(self, values: NDArray[Any]) -> None:
        """Append a tensor, or the next block of one."""
        self._handle.write(_flat_bytes(values))


@contextmanager
def writing(path: Path, specs: Mapping[str, TensorSpec]) -> Iterator[WeightsWriter]:
    """Stream weights into a file that appears under its name only when all of it is on the disk.

    Raises:
        CheckpointError: fewer or more values were written than `specs` says, or a file cannot hold them.
    """
    names = tuple(sorted(specs, key=lambda name: (-np.dtype(specs[name].dtype).itemsize, name)))
    head = _head(names, specs)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # two writers never share one
    try:
        with half.open("xb") as handle:
            handle.write(head)
            writer = WeightsWriter(handle, names)
            yield writer
            writer.bytes = handle.tell()
            if writer.bytes != (wanted := len(head) + sum(spec.nbytes for spec in specs.values())):
                raise CheckpointError(f"{path}: {writer.bytes} bytes were written, expected {wanted}")
            handle.flush()
            os.fsync(handle.fileno())
        with open_weights(half) as file:
            writer.digest = digest(file)
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
    sync_folder(path.parent)


def _head(names: tuple[str, ...], specs: Mapping[str, TensorSpec]) -> bytes:
    entries, end = {}, 0
    for name in names:
        if name == _RESERVED:
            raise CheckpointError(f"a tensor cannot be named {_RESERVED}: safetensors keeps that name for itself")
        start, end = end, end + specs[name].nbytes
        entries[name] = {
            "dtype": _CODES[specs[name].dtype],
            "shape": list(specs[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _header(path: Path, handle: BinaryIO) -> tuple[dict[str, TensorSpec], dict[str, int]]:
    length = int.from_bytes(handle.read(8), "little")
    entries = json.loads(handle.read(length))
    specs, offsets = {}, {}
    for name, entry in sorted(
        ((n, e) for n, e in entries.items() if n != _RESERVED), key=lambda item: item[1]["data_offsets"]
    ):
        if entry["dtype"] not in _DTYPES:
            raise CheckpointError(f"{path}: tensor {name} is {entry['dtype']}, expected one of {', '.join(_DTYPES)}")
        specs[name] = TensorSpec(_DTYPES[entry["dtype"]], tuple(entry["shape"]))
        offsets[name] = 8 + length + entry["data_offsets"][0]
    return specs, offsets


def _spec(name: str, tensor: NDArray[Any]) -> TensorSpec:
    spec = TensorSpec.of(tensor)
    if spec.dtype not in _CODES:
        raise CheckpointError(f"tensor {name} is {spec.dtype}, expected one of {', '.join(_CODES)}")
    return spec


def _flat_bytes(tensor: NDArray[Any]) -> memoryview:
    little = np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<"))
    return memoryview(little.reshape(-1).view(np.uint8))


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, so that a new one survives a power cut; not every file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
