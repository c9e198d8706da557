"""Weights on disk: written whole or not at all, named by a digest, read a tensor or a block at a time.

Files are safetensors without metadata: the same weights give the same bytes.
"""

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from zk0.disk import room_for
from zk0.errors import CheckpointError
from zk0.tensor_spec import CODES, TensorSpec, file_order, read_head, title, write_head

Weights = Mapping[str, NDArray[Any]]

_BLOCK_BYTES = 1 << 20


class Source(Protocol):
    """Weights that can be read a block at a time, from several threads at once, wherever they come from."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Name, dtype and shape of each tensor."""

    def read(self, name: str, start: int, out: NDArray[Any]) -> None:
        """Fill `out` (one dimension, the tensor's dtype) with values `start`, `start + 1`, ... of the flat tensor.

        Raises:
            CheckpointError: the values cannot be had.
        """


class LazyWeights(Weights):
    """Weights that stay where they are: names and shapes are known, values are read a tensor at a time."""

    specs: Mapping[str, TensorSpec]

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


class WeightsFile(LazyWeights):
    """Weights that stay on disk: `file[name]` reads one tensor, `read` a block of one.

    Bytes are read, not mapped: resident memory stays that of the caller's buffers, and a file that is cut short
    while it is open raises a CheckpointError instead of killing the process with SIGBUS.
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
        """The values of a flat tensor, a block after the other, each in the memory of the one before."""
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
                raise CheckpointError(f"{self.path}: ends inside tensor {name}: truncated while it was read")
            at, left = at + count, left[count:]


def digest(weights: Weights) -> str:
    """BLAKE3 (64 hex digits) of the weights, whatever their order and wherever they lie.

    Canonical form: for each name in ascending order of code points, the UTF-8 bytes of the JSON array
    `["name","dtype",[dimension,...]]` (no blanks, non-ASCII as it is; dtype as numpy names it), a line feed, then
    the values in C order and little-endian.

    Raises:
        CheckpointError: a dtype that a file cannot hold.

    >>> digest({"w": np.zeros((2, 3), np.float32)}) == blake3(b'["w","float32",[2,3]]\\n' + bytes(24)).hexdigest()
    True
    """
    found = blake3()
    for name in sorted(weights):
        if isinstance(weights, WeightsFile):
            found.update(title(name, weights.specs[name]))
            for block in weights.blocks(name):
                found.update(_flat_bytes(block))
        else:
            found.update(title(name, _spec(name, weights[name])))
            found.update(_flat_bytes(weights[name]))
    return found.hexdigest()


def save_weights(path: Path, weights: Weights, lasting: bool = True, spare: Path | None = None) -> tuple[str, int]:
    """Write weights whole or not at all; parents are made. Digest and bytes of the file.

    `lasting` and `spare`: see `writing`.

    Raises:
        CheckpointError: a dtype or a name that a file cannot hold.
        DiskFull: there is no room for it.
        OSError: the disk refuses.
    """
    with writing(path, {name: _spec(name, tensor) for name, tensor in weights.items()}, lasting, spare) as writer:
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
    if expected is not None:
        _check_digest(path, weights, expected)
    return weights


def check_weights(path: Path, expected: str) -> None:
    """Raises CheckpointError where a file's weights are not those of the digest; memory is a block."""
    with open_weights(path) as file:
        _check_digest(path, file, expected)


@contextmanager
def open_checked(path: Path, expected: str) -> Iterator[WeightsFile]:
    """The weights of a file, which must be those of the digest.

    This process hashes a file again only after somebody has written it: several clients train from one.

    Raises:
        CheckpointError: no file, not a whole one, or its weights are not those of the digest.
    """
    _check_once(path, expected)
    with open_weights(path) as file:
        yield file


def _check_once(path: Path, expected: str) -> None:
    try:
        found = path.stat()
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read ({e.strerror}); expected a safetensors file") from e
    _check_state(path, expected, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=4)
def _check_state(path: Path, expected: str, state: tuple[int, ...]) -> None:
    check_weights(path, expected)


def _check_digest(path: Path, weights: Weights, expected: str) -> None:
    if (found := digest(weights)) != expected:
        raise CheckpointError(
            f"{path}: digest {found[:12]}, expected {expected[:12]}: not the weights that were recorded"
        )


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
        specs, offsets = read_head(path, handle)
        yield WeightsFile(path, handle, specs, offsets)


class WeightsWriter:
    """Tensors written one after the other, in the order of `names`; `digest` and `bytes` are known at the end."""

    def __init__(self, handle: BinaryIO, names: tuple[str, ...], specs: Mapping[str, TensorSpec]) -> None:
        self.names = names
        self.digest = ""
        self.bytes = 0
        self._handle, self._specs, self._hash = handle, specs, blake3()
        self._coming, self._left = iter(names), 0

    def write(self, values: NDArray[Any]) -> None:
        """Append a tensor, or the next block of one; afterwards its memory may be used again."""
        data = _flat_bytes(values)
        while data and self._left <= 0 and self._begin():
            pass
        self._hash.update(data)
        self._handle.write(data)
        self._left -= len(data)

    def running_digest(self) -> str:
        """The digest of all that was written, once everything is; it is that of the weights if `names` ascend."""
        while self._begin():
            pass
        return self._hash.hexdigest()

    def _begin(self) -> bool:
        """Go on to the next tensor, if there is one."""
        name = next(self._coming, None)
        if name is not None:
            self._hash.update(title(name, self._specs[name]))
            self._left = self._specs[name].nbytes
        return name is not None


@contextmanager
def writing(
    path: Path, specs: Mapping[str, TensorSpec], lasting: bool = True, spare: Path | None = None
) -> Iterator[WeightsWriter]:
    """Stream weights into a file that appears under its name only when all of it is written.

    `lasting`: only when it is on the disk, so that a power cut leaves it whole. Without, it survives any process, and a
    power cut may leave less than all of it under its name: for what is made again then, and never read unchecked.

    `spare`: a file that nobody needs any more. It is written over where no other name leads to it, and removed else: a
    new file takes longer, for its memory must be found first.

    Raises:
        CheckpointError: fewer or more values were written than `specs` says, or a file cannot hold them.
        DiskFull: there is no room for it.
    """
    names = file_order(specs)
    head = write_head(names, specs)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # two writers never share one
    try:
        again = spare is not None and _taken_over(spare, half)
        with room_for(path), half.open("r+b" if again else "xb") as handle:
            handle.write(head)
            writer = WeightsWriter(handle, names, specs)
            yield writer
            writer.bytes = handle.tell()
            if writer.bytes != (wanted := len(head) + sum(spec.nbytes for spec in specs.values())):
                raise CheckpointError(f"{path}: {writer.bytes} bytes were written, expected {wanted}")
            handle.truncate()
            handle.flush()
            if lasting:
                os.fsync(handle.fileno())
        writer.digest = writer.running_digest() if list(names) == sorted(names) else _digest_of(half)
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
    if lasting:
        sync_folder(path.parent)


def _taken_over(spare: Path, path: Path) -> bool:
    """Whether `spare` is now called `path`; gone is it in any case."""
    try:
        if spare.stat().st_nlink == 1:
            spare.replace(path)
            return True
        spare.unlink()
    except FileNotFoundError:
        pass
    return False


def _digest_of(path: Path) -> str:
    with open_weights(path) as file:
        return digest(file)


def _spec(name: str, tensor: NDArray[Any]) -> TensorSpec:
    spec = TensorSpec.of(tensor)
    if spec.dtype not in CODES:
        raise CheckpointError(f"tensor {name} is {spec.dtype}, expected one of {', '.join(CODES)}")
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
