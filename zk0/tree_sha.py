"""SHA-256 of long data in two levels, so that several threads can work on one digest."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK_BYTES = 1 << 20
_LONG_BYTES = 1 << 16
"""From here on, a thread of its own costs less than waiting for it."""
_THREADS = min(4, os.cpu_count() or 1)


class TreeSha:
    """SHA-256 over titles and, after each, the SHA-256 (32 bytes) of every MiB of the data that follows it.

    The last MiB of a title's data may be shorter. Threads end with the `with` block.

    >>> with TreeSha() as tree:
    ...     tree.begin(b"one")
    ...     with tree.taking(bytes(CHUNK_BYTES + 5)):
    ...         pass
    >>> chunks = bytes(CHUNK_BYTES), bytes(5)
    >>> tree.hexdigest() == hashlib.sha256(b"one" + b"".join(hashlib.sha256(c).digest() for c in chunks)).hexdigest()
    True
    """

    def __init__(self) -> None:
        self._top = hashlib.sha256()
        self._chunk: _Hash | None = None
        """Of the MiB that is not full yet."""
        self._filled = 0
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def begin(self, title: bytes) -> None:
        """What the data after it belongs to."""
        self._end_chunk()
        self._top.update(title)

    @contextmanager
    def taking(self, data: "memoryview | bytes") -> Iterator[None]:
        """Take in data, on other threads while the block runs; afterwards its memory may be used again."""
        pieces = self._pieces(memoryview(data))
        if len(data) < _LONG_BYTES:
            yield
            for sha, piece, _ in pieces:
                sha.update(piece)
        else:
            jobs = [self._threads().submit(sha.update, piece) for sha, piece, _ in pieces]
            try:
                yield
            finally:
                _wait(jobs)
        for sha, _, is_full in pieces:
            if is_full:
                self._top.update(sha.digest())

    def take_chunks(self, read: Callable[[int], Any], starts: Sequence[int]) -> None:
        """Take in data a MiB at a time: `read` gives each by where it starts, several at once."""

        def work(start: int) -> bytes:
            return hashlib.sha256(read(start)).digest()

        for found in self._threads().map(work, starts) if len(starts) > 1 else map(work, starts):
            self._top.update(found)

    def hexdigest(self) -> str:
        """64 hex digits, of all that was taken in."""
        self._end_chunk()
        return self._top.hexdigest()

    def _pieces(self, data: memoryview) -> "list[tuple[_Hash, memoryview, bool]]":
        """The data cut at the edges of chunks: whose it is, and whether the chunk is full then."""
        found, at = [], 0
        while at < len(data):
            sha = self._chunk or hashlib.sha256()
            piece = data[at : at + CHUNK_BYTES - self._filled]
            at, filled = at + len(piece), self._filled + len(piece)
            is_full = filled == CHUNK_BYTES
            self._chunk, self._filled = (None, 0) if is_full else (sha, filled)
            found.append((sha, piece, is_full))
        return found

    def _end_chunk(self) -> None:
        if self._chunk is not None:
            self._top.update(self._chunk.digest())
            self._chunk, self._filled = None, 0

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, "zk0-hash")
        return self._pool


def _wait(jobs: "list[Future[None]]") -> None:
    for job in jobs:
        job.result()
