"""A folder of arrays that is bounded in size: memory-mapped when read, the least recently used ones go first.

Each file is a .npy with the SHA-256 of all its bytes behind it, so a file that was cut short or has a flipped bit
is found when it is opened. Whoever reads or writes a file holds a lock on it (flock: it ends with the process), and
a locked file is never removed: clients that share the folder do not take each other's features away.
"""

import errno
import fcntl
import hashlib
import io
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from zk0.errors import SettingsError

_HALF = ".half-"
_DIGEST_BYTES = hashlib.sha256().digest_size


class KeptArrays:
    """Arrays by name, `limit_bytes` in all."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    def open(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any] | None:
        """The array memory-mapped (read-only, kept from removal while it lives), or None where it is missing or is
        not, to the last bit, what was written.

        Raises:
            SettingsError: the system lets this process open no more files.
        """
        path = self._path(name)
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)  # the mapping has a copy of the descriptor, and with it the lock
                stored = np.memmap(file, np.uint8, "r")
        except ValueError:  # it is empty
            return None
        except OSError as e:
            if e.errno in (errno.EMFILE, errno.ENFILE):
                raise SettingsError(f"{path}: too many open files, one an episode; raise the limit (ulimit -n)") from e
            return None
        header = _header(shape, dtype)
        content, digest = stored[:-_DIGEST_BYTES], stored[-_DIGEST_BYTES:]
        if content[: len(header)].tobytes() != header or len(stored) != array_bytes(shape, dtype):
            return None
        if hashlib.sha256(content.data).digest() != digest.tobytes():
            return None
        os.utime(path)
        return content[len(header) :].view(dtype).reshape(shape)

    def write(self, name: str, shape: tuple[int, ...], dtype: DTypeLike, parts: Iterable[NDArray[Any]]) -> None:
        """Keep an array that arrives in parts along its first axis; whole or not at all.

        Raises:
            SettingsError: it does not fit beside what is in use, or the disk is full.
        """
        sha, written = hashlib.sha256(), 0
        with self._reserved(array_bytes(shape, dtype)) as (file, half):
            file.write(header := _header(shape, dtype))
            sha.update(header)
            for part in parts:
                if part.dtype != dtype or part.shape[1:] != shape[1:]:
                    raise AssertionError(f"{name}: {part.dtype} {part.shape[1:]}, announced as {dtype} {shape[1:]}")
                data = np.ascontiguousarray(part).view(np.uint8).data
                file.write(data)
                sha.update(data)
                written += len(part)
            if written != shape[0]:
                raise AssertionError(f"{name}: {written} rows, announced as {shape[0]}")
            file.write(sha.digest())
            file.flush()
            half.replace(self._path(name))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    @contextmanager
    def _reserved(self, size: int) -> Iterator[tuple[BinaryIO, Path]]:
        """A file whose bytes are set aside on the disk; it is gone afterwards unless it was renamed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._make_room(size)
            handle, name = tempfile.mkstemp(prefix=_HALF, dir=self.folder)
            fcntl.flock(handle, fcntl.LOCK_EX)
        half = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                self._allocate(file, size)
                yield file, half
        finally:
            half.unlink(missing_ok=True)

    def _allocate(self, file: BinaryIO, size: int) -> None:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as e:
            raise SettingsError(
                f"{self.folder}: no room on the disk for {size:,} bytes of features ({e.strerror}): free some, "
                'or set cache_dir to another disk, or training.features = "off"'
            ) from e

    def _make_room(self, size: int) -> None:
        """Remove the least recently used files that nobody has open, until `size` bytes fit under the limit."""
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
                f"training.feature_cache_gb allows {self.limit_bytes:,}: raise it, or keep less per frame with "
                'training.features = "embeddings" or "off"'
            )

    def _files(self) -> Iterator[Path]:
        yield from self.folder.glob("*.npy")
        yield from self.folder.glob(f"{_HALF}*")  # of those who write now, and what killed processes left


def array_bytes(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    """Bytes of the file of an array."""
    return len(_header(shape, dtype)) + int(np.prod(shape)) * np.dtype(dtype).itemsize + _DIGEST_BYTES


def _header(shape: tuple[int, ...], dtype: DTypeLike) -> bytes:
    buffer = io.BytesIO()
    described = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def _remove_unless_open(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True
