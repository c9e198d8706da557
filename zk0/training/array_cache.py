"""A folder of arrays with a size limit: memory-mapped for reading, least recently used files removed first.

Each file is a .npy file followed by the SHA-256 of its bytes, so opening a truncated or corrupt file fails. A process
that reads or writes a file holds a lock on it (flock, which ends with the process), and a locked file is never removed:
several clients can share the folder.
"""

import errno
import fcntl
import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from zk0.errors import SettingsError
from zk0.storage.atomic import atomic_path

_DIGEST_BYTES = hashlib.sha256().digest_size


class ArrayCache:
    """Arrays by name.

    Args:
        folder: the folder of the files; created on the first write.
        limit_bytes: limit for all files together.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    def open(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any] | None:
        """The array, memory-mapped and read-only, or None if it is missing, corrupt, or of another shape or dtype.

        The file is not removed while the array exists.

        Raises:
            SettingsError: the system does not let this process open more files.
        """
        path = self._path(name)
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)  # the mapping has a copy of the descriptor, and with it the lock
                stored = np.memmap(file, np.uint8, "r")
        except ValueError:  # an empty file
            return None
        except OSError as e:
            if e.errno in (errno.EMFILE, errno.ENFILE):
                raise SettingsError(f"{path}: too many open files, one an episode; raise the limit (ulimit -n)") from e
            return None
        header = _header(shape, dtype)
        content, digest = stored[:-_DIGEST_BYTES], stored[-_DIGEST_BYTES:]
        if content[: len(header)].tobytes() != header or len(stored) != array_file_bytes(shape, dtype):
            return None
        if hashlib.sha256(content.data).digest() != digest.tobytes():
            return None
        os.utime(path)
        return content[len(header) :].view(dtype).reshape(shape)

    def write(self, name: str, shape: tuple[int, ...], dtype: DTypeLike, parts: Iterable[NDArray[Any]]) -> None:
        """Store an array that arrives in parts along its first axis; after a failure nothing is stored.

        Raises:
            SettingsError: the array does not fit beside the files in use, or the disk is full.
        """
        sha, written = hashlib.sha256(), 0
        with ExitStack() as stack, atomic_path(self._path(name), durable=False) as temporary:
            file = stack.enter_context(self._reserve_file(temporary, array_file_bytes(shape, dtype)))
            file.write(header := _header(shape, dtype))
            sha.update(header)
            for part in parts:
                if part.dtype != dtype or part.shape[1:] != shape[1:]:
                    raise AssertionError(f"{name}: {part.dtype} {part.shape[1:]}, expected {dtype} {shape[1:]}")
                data = np.ascontiguousarray(part).view(np.uint8).data
                file.write(data)
                sha.update(data)
                written += len(part)
            if written != shape[0]:
                raise AssertionError(f"{name}: {written} rows, expected {shape[0]}")
            file.write(sha.digest())
            file.flush()  # the stack closes, and so unlocks, the file after it was renamed

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    @contextmanager
    def _reserve_file(self, path: Path, size: int) -> Iterator[BinaryIO]:
        """Make a file with `size` bytes allocated on the disk, and hold a lock on it."""
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._make_room(size)
            file = path.open("xb")
            fcntl.flock(file, fcntl.LOCK_EX)
        with file:
            self._allocate(file, size)
            yield file

    def _allocate(self, file: BinaryIO, size: int) -> None:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as e:
            raise SettingsError(
                f"{self.folder}: no room on the disk for {size:,} bytes of features ({e.strerror}): free some, "
                'or set cache_dir to another disk, or training.features = "off"'
            ) from e

    def _make_room(self, size: int) -> None:
        """Remove the least recently used files that no process has open, until `size` bytes fit under the limit."""
        files = sorted((f.stat().st_mtime_ns, f.stat().st_size, f) for f in self._files())
        total = sum(length for _, length, _ in files)
        for _, length, file in files:
            if total + size <= self.limit_bytes:
                return
            if _remove_unless_open(file):
                total -= length
        if total + size > self.limit_bytes:
            raise SettingsError(
                f"{self.folder}: {total:,} bytes of features are in use and {size:,} more are needed; "
                f"training.feature_cache_gb allows {self.limit_bytes:,}: raise it, or store less of each frame with "
                'training.features = "embeddings" or "off"'
            )

    def _files(self) -> Iterator[Path]:
        yield from self.folder.glob("*.npy")
        yield from self.folder.glob(".*.npy.*.tmp")  # files being written, and those that killed processes left


def array_file_bytes(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    """Size in bytes of the file of an array: header, values and digest."""
    return len(_header(shape, dtype)) + int(np.prod(shape)) * np.dtype(dtype).itemsize + _DIGEST_BYTES


def _header(shape: tuple[int, ...], dtype: DTypeLike) -> bytes:
    """The header of a .npy file."""
    buffer = io.BytesIO()
    description = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, description)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def _remove_unless_open(path: Path) -> bool:
    """Remove a file; False if a process has it open."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True
