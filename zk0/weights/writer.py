"""Write weights to a safetensors file atomically, tensor by tensor, and compute their digest on the way."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from zk0.errors import CheckpointError
from zk0.records import DigestAlgorithm
from zk0.storage.atomic import atomic_path
from zk0.weights.digests import digest, digest_text, new_hash
from zk0.weights.files import Weights, open_weights
from zk0.weights.tensor_spec import (
    TensorSpec,
    checked_spec,
    digest_header,
    encode_header,
    file_order,
    little_endian_bytes,
)


def save_weights(
    path: Path,
    weights: Weights,
    durable: bool = True,
    reuse_file: Path | None = None,
    algorithm: DigestAlgorithm = "blake3",
) -> tuple[str, int]:
    """Write weights to a file atomically; return their digest and the bytes of the file.

    Args:
        path: the file; missing parent folders are made.
        weights: arrays by name.
        durable: see `open_weights_writer`.
        reuse_file: see `open_weights_writer`.
        algorithm: of the digest.

    Raises:
        CheckpointError: a dtype or a name that a file cannot hold.
        DiskFull: there is no room for it.
        OSError: the file cannot be written.
    """
    specs = {name: checked_spec(name, tensor) for name, tensor in weights.items()}
    with open_weights_writer(path, specs, durable, reuse_file, algorithm) as writer:
        for name in writer.names:
            writer.write(weights[name])
    return writer.digest, writer.bytes


class WeightsWriter:
    """Appends tensors to a file in the order of `names`; `digest` and `bytes` are set when the file is closed."""

    def __init__(
        self, handle: BinaryIO, names: tuple[str, ...], specs: Mapping[str, TensorSpec], algorithm: DigestAlgorithm
    ) -> None:
        self.names = names
        self.digest = ""
        self.bytes = 0
        self._handle, self._specs = handle, specs
        self._algorithm, self._hash = algorithm, new_hash(algorithm)
        self._pending, self._missing_bytes = iter(names), 0

    def write(self, values: NDArray[Any]) -> None:
        """Append a tensor, or the next block of one; its memory may be overwritten afterwards."""
        data = little_endian_bytes(values)
        while data and self._missing_bytes <= 0 and self._start_tensor():
            pass
        self._hash.update(data)
        self._handle.write(data)
        self._missing_bytes -= len(data)

    def running_digest(self) -> str:
        """Return the digest of everything written; where `names` ascend, it is the digest of the weights."""
        while self._start_tensor():
            pass
        return digest_text(self._hash, self._algorithm)

    def _start_tensor(self) -> bool:
        """Start the next tensor; return False where there is none."""
        name = next(self._pending, None)
        if name is not None:
            self._hash.update(digest_header(name, self._specs[name]))
            self._missing_bytes = self._specs[name].nbytes
        return name is not None


@contextmanager
def open_weights_writer(
    path: Path,
    specs: Mapping[str, TensorSpec],
    durable: bool = True,
    reuse_file: Path | None = None,
    algorithm: DigestAlgorithm = "blake3",
) -> Iterator[WeightsWriter]:
    """Open a writer for a file that appears under its name when all of it is written.

    Args:
        path: the file; missing parent folders are made.
        specs: the tensors that will be written.
        durable: flush the file to the disk first, so that it survives a power cut. Without, it survives the end of any
            process, but a power cut may truncate it: for files that are made again, and whose digest is checked.
        reuse_file: a file that is no longer needed. Its blocks are overwritten, or it is removed where it has another
            hard link. Writing is faster then: the kernel need not allocate memory for a new file's pages.
        algorithm: of the digest.

    Raises:
        CheckpointError: fewer or more values were written than `specs` lists, or a file cannot hold them.
        DiskFull: there is no room for it.
    """
    names = file_order(specs)
    header = encode_header(names, specs)
    with atomic_path(path, durable=durable) as temporary:
        reused = reuse_file is not None and _reuse(reuse_file, temporary)
        with temporary.open("r+b" if reused else "xb") as handle:
            handle.write(header)
            writer = WeightsWriter(handle, names, specs, algorithm)
            yield writer
            writer.bytes = handle.tell()
            if writer.bytes != (expected := len(header) + sum(spec.nbytes for spec in specs.values())):
                raise CheckpointError(f"{path}: {writer.bytes} bytes were written, expected {expected}")
            handle.truncate()
        in_order = list(names) == sorted(names)
        writer.digest = writer.running_digest() if in_order else _digest_of(temporary, algorithm)


def _reuse(file: Path, path: Path) -> bool:
    """Rename `file` to `path` and return True, unless it has another hard link; either way `file` is gone."""
    try:
        if file.stat().st_nlink == 1:
            file.replace(path)
            return True
        file.unlink()
    except FileNotFoundError:
        pass
    return False


def _digest_of(path: Path, algorithm: DigestAlgorithm) -> str:
    with open_weights(path) as file:
        return digest(file, algorithm)
