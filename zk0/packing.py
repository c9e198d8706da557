"""Weights compressed without loss, for slow lines.

A packed file is one Zstandard frame of a safetensors file whose values are shuffled: of every block of 1 MiB the first
bytes of all values come first, then the second ones, and so on. Signs and exponents are alike and lie together then.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zstandard
from numpy.typing import NDArray

from zk0.disk import room_for
from zk0.errors import CheckpointError
from zk0.tensor_spec import TensorSpec, file_order, write_head
from zk0.weights import open_weights

_LEVEL = 1
"""Higher levels take much longer and find little more in weights."""
_BLOCK_BYTES = 1 << 20


class _Reader(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


def pack(source: Path, target: Path) -> int:
    """Compress a file of weights as `save_weights` writes it; bytes of the packed file."""
    half = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with room_for(target), open_weights(source) as file, half.open("wb") as handle:
            with zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).stream_writer(
                handle, closefd=False
            ) as out:
                out.write(write_head(file_order(file.specs), file.specs))
                for name in file_order(file.specs):
                    for block in file.blocks(name, _BLOCK_BYTES):
                        out.write(_shuffled(block))
            size = handle.tell()
        half.replace(target)
    finally:
        half.unlink(missing_ok=True)
    return size


def unpack(source: Path, target: Path, specs: Mapping[str, TensorSpec]) -> None:
    """Write the file of weights that was packed; it must hold tensors like `specs`, and not a byte more.

    Raises:
        CheckpointError: it does not, or is not a packed file.
        DiskFull: there is no room for it.
    """
    half = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with room_for(target), source.open("rb") as handle, half.open("wb") as out:
            packed = zstandard.ZstdDecompressor().stream_reader(handle)
            for piece in _unpacked(packed, specs):
                out.write(piece)
        half.replace(target)
    except (zstandard.ZstdError, ValueError) as e:
        raise CheckpointError(f"{source}: is not packed weights ({e})") from e
    except OSError as e:
        raise CheckpointError(f"{source}: cannot be unpacked ({e.strerror or e})") from e
    finally:
        half.unlink(missing_ok=True)


def _unpacked(packed: _Reader, specs: Mapping[str, TensorSpec]) -> Iterator[bytes]:
    names = file_order(specs)
    head = write_head(names, specs)
    if _exactly(packed, len(head)) != head:
        raise ValueError("it holds other tensors than those that were asked for")
    yield head
    for name in names:
        for size in _block_sizes(specs[name]):
            yield _unshuffled(_exactly(packed, size), np.dtype(specs[name].dtype).itemsize)
    if packed.read(1):
        raise ValueError("it goes on after the last tensor")


def _exactly(packed: _Reader, size: int) -> bytes:
    data = packed.read(size)
    if len(data) < size:
        raise ValueError(f"it ends after {len(data)} of {size} bytes of a block")
    return data


def _block_sizes(spec: TensorSpec) -> list[int]:
    whole, rest = divmod(spec.nbytes, _BLOCK_BYTES)
    return [_BLOCK_BYTES] * whole + ([rest] if rest else [])


def _shuffled(block: NDArray[Any]) -> bytes:
    return block.view(np.uint8).reshape(-1, block.itemsize).T.tobytes()


def _unshuffled(data: bytes, itemsize: int) -> bytes:
    return np.frombuffer(data, np.uint8).reshape(itemsize, -1).T.tobytes()
