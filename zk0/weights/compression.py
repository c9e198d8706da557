"""Lossless compression of the weights that a client sends, for slow connections (`federation.compress`).

A compressed file is one Zstandard frame of a safetensors file whose values are byte-shuffled: of every 1 MiB of a
tensor it holds the first bytes of all values, then the second ones, and so on. Signs and exponents are similar, and are
neighbors then. Each run of bytes is a Zstandard block of its own, so that the codes for exponents are not spoilt by
mantissas, which are nearly random. Why no library does this: docs/decisions/0019-compression-stays-ours.md.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zstandard
from numpy.typing import NDArray

from zk0.errors import CheckpointError
from zk0.storage.atomic import atomic_path
from zk0.weights.files import open_weights
from zk0.weights.tensor_spec import TensorSpec, encode_header, file_order

_LEVEL = 1
"""Of Zstandard; higher levels take longer and make shuffled weights larger."""
_BLOCK_BYTES = 1 << 20


class _Reader(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


def compress_weights(source: Path, target: Path) -> int:
    """Compress a file that `save_weights` wrote; return the bytes of the compressed file."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    with (
        atomic_path(target, durable=False) as temporary,
        open_weights(source) as file,
        temporary.open("wb") as handle,
    ):
        with compressor.stream_writer(handle, closefd=False) as out:
            out.write(encode_header(file_order(file.specs), file.specs))
            for name in file_order(file.specs):
                for block in file.blocks(name, _BLOCK_BYTES):
                    for run in _shuffled(block):
                        out.write(run.tobytes())
                        out.flush(zstandard.FLUSH_BLOCK)
        return handle.tell()


def decompress_weights(source: Path, target: Path, specs: Mapping[str, TensorSpec]) -> None:
    """Restore the file of weights from a compressed one, which may come from an untrusted client.

    Args:
        source: the compressed file.
        target: the restored file; not written where anything is wrong.
        specs: the tensors that the file must hold. Reading stops at the first byte that does not fit, so a small file
            cannot fill the disk.

    Raises:
        CheckpointError: other tensors, a byte more or less than they take, or not a compressed file.
        DiskFull: there is no room for it.
    """
    try:
        with (
            atomic_path(target, durable=False) as temporary,
            source.open("rb") as handle,
            temporary.open("wb") as out,
        ):
            frame = zstandard.ZstdDecompressor().stream_reader(handle)
            for data in _restored(frame, specs):
                out.write(data)
    except (zstandard.ZstdError, ValueError) as e:
        raise CheckpointError(f"{source}: not compressed weights ({e})") from e
    except OSError as e:
        raise CheckpointError(f"{source}: cannot be decompressed ({e.strerror or e})") from e


def _restored(frame: _Reader, specs: Mapping[str, TensorSpec]) -> Iterator[bytes]:
    """Yield the bytes of the safetensors file."""
    names = file_order(specs)
    header = encode_header(names, specs)
    if _read_exactly(frame, len(header)) != header:
        raise ValueError("it holds other tensors than expected")
    yield header
    for name in names:
        for size in _block_sizes(specs[name]):
            yield _unshuffled(_read_exactly(frame, size), np.dtype(specs[name].dtype).itemsize)
    if frame.read(1):
        raise ValueError("it continues after the last tensor")


def _read_exactly(frame: _Reader, size: int) -> bytes:
    data = frame.read(size)
    if len(data) < size:
        raise ValueError(f"it ends after {len(data)} of {size} bytes of a block")
    return data


def _block_sizes(spec: TensorSpec) -> list[int]:
    whole, rest = divmod(spec.nbytes, _BLOCK_BYTES)
    return [_BLOCK_BYTES] * whole + ([rest] if rest else [])


def _shuffled(block: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the bytes of the values (itemsize, n): row i holds byte i of each."""
    return block.view(np.uint8).reshape(-1, block.itemsize).T


def _unshuffled(data: bytes, itemsize: int) -> bytes:
    return np.frombuffer(data, np.uint8).reshape(itemsize, -1).T.tobytes()
