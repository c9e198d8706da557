"""Append-only files of JSON lines, each chained to the previous one by its SHA-256.

A line is JSON that begins with `{"previous":"<64 hex digits>"`: the SHA-256 of the bytes of the previous line without
its line feed, and 64 zeros in the first line. Changing, removing or inserting a line therefore breaks the chain. A line
counts as written once its line feed is on the disk; what a crash left behind the last line feed is ignored, and the
next append removes it. The ledger, the journals and the nightly results are such files.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic import Field, ValidationError

from zk0.errors import LedgerError
from zk0.records import Record
from zk0.storage.atomic import sync_folder
from zk0.storage.disk_space import translate_disk_full

FIRST_PREVIOUS = "0" * 64
"""`previous` of the first line."""
_BLOCK = 1 << 16
"""Bytes that are read at a time."""
_counted: dict[tuple[str, int], tuple[int, int]] = {}
"""Path and inode of a file -> an offset behind a line feed, and the number of lines before it."""


class ChainedLine(Record):
    """What every line holds; each kind of file adds its own fields."""

    previous: str = Field(pattern=r"^[0-9a-f]{64}$")


def line_digest(line: bytes) -> str:
    """SHA-256 of a line without its line feed."""
    return hashlib.sha256(line).hexdigest()


def complete_lines(path: Path) -> list[bytes]:
    """All lines that end with a line feed, without it; none if the file does not exist.

    Raises:
        LedgerError: the file cannot be read.
    """
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as e:
        raise LedgerError(f"{path}: cannot be read ({e.strerror})") from e


def last_complete_line(path: Path) -> tuple[bytes | None, int]:
    """Return the last line that ends with a line feed, without it, and the offset behind that line feed.

    Only the end of the file is read. None and 0 if there is no such line.

    Raises:
        LedgerError: the file cannot be read.
    """
    return next(newest_lines(path), (None, 0))


def newest_lines(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yield the complete lines from the last one on, each with the offset behind its line feed; no more is read.

    Raises:
        LedgerError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            yield from _newest_lines(file)
    except FileNotFoundError:
        return
    except OSError as e:
        raise LedgerError(f"{path}: cannot be read ({e.strerror})") from e


def _newest_lines(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    start, tail, end, block = file.seek(0, os.SEEK_END), b"", 0, _BLOCK
    while start > 0:
        size = min(block, start)
        file.seek(start - size)
        tail, start, block = file.read(size) + tail, start - size, 2 * block
        stop = len(tail)
        while (feed := tail.rfind(b"\n", 0, stop)) >= 0:
            if end:
                yield tail[feed + 1 : stop], end
            stop, end, block = feed, start + feed + 1, _BLOCK
        tail = tail[:stop]
    if end:
        yield tail, end


def count_lines(path: Path, end: int) -> int:
    """Return the number of line feeds before an offset; what this process has counted before is not read again.

    Raises:
        LedgerError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            key = str(path), os.fstat(file.fileno()).st_ino
            at, lines = _counted.get(key, (0, 0))
            file.seek(max(0, at - 1))
            if at > end or (at and file.read(1) != b"\n"):  # the file was cut or written anew
                at, lines = file.seek(0), 0
            while at < end and (block := file.read(min(_BLOCK, end - at))):
                at, lines = at + len(block), lines + block.count(b"\n")
    except FileNotFoundError:
        return 0
    except OSError as e:
        raise LedgerError(f"{path}: cannot be read ({e.strerror})") from e
    _counted[key] = at, lines
    return lines


def last_line_digest(lines: list[bytes]) -> str:
    """`previous` of the line that follows these."""
    return digest_after(lines[-1] if lines else None)


def digest_after(last: bytes | None) -> str:
    """`previous` of the line that follows this one; None: of the first line."""
    return FIRST_PREVIOUS if last is None else line_digest(last)


def check_chained(path: Path, number: int, previous: str, expected: str) -> None:
    """Check the link of one line to the one before it.

    Args:
        path: the file, which the error names.
        number: number of the line, from 1.
        previous: digest that the line holds.
        expected: digest of the line before.

    Raises:
        LedgerError: they differ.
    """
    if previous != expected:
        raise LedgerError(
            f"{path} line {number}: chained to {previous[:12]}, expected {expected[:12]}: "
            "a line before it was changed, added or removed"
        )


def chained_line(key: str, record: Record, previous: str) -> bytes:
    """The line that holds a record under `key`, chained to `previous`."""
    line = {"previous": previous, key: record.model_dump(mode="json")}
    return json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def parse_lines[L: ChainedLine](
    path: Path,
    lines: Sequence[bytes],
    line_type: type[L],
    content: str,
    previous: str = FIRST_PREVIOUS,
    first: int = 1,
) -> Iterator[L]:
    """Parse lines and check their chain.

    Args:
        path: the file, which errors name.
        lines: of the file, without line feeds.
        line_type: what a line is parsed to.
        content: what a line should hold, for errors.
        previous: digest of the line before the first of these.
        first: number of the first of these in the file.

    Raises:
        LedgerError: a line was changed, removed or added, or does not parse; names its number.
    """
    for number, text in enumerate(lines, start=first):
        try:
            line = line_type.model_validate_json(text)
        except ValidationError as e:
            fault = e.errors(include_url=False)[0]
            where = ".".join(map(str, fault["loc"])) or "it"
            raise LedgerError(
                f"{path} line {number}: not a {content}: {where}: {fault['msg']}; restore the file"
            ) from e
        check_chained(path, number, line.previous, previous)
        yield line
        previous = line_digest(text)


@contextmanager
def locked_file(path: Path) -> Iterator[int]:
    """Open a file for appending, created if missing, under an exclusive lock; yield its descriptor.

    The lock ends with the process, so a killed writer never leaves it behind.

    Raises:
        DiskFull: the disk has no room for a line; the next append removes the incomplete one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if is_new:
            sync_folder(path.parent)
        with translate_disk_full(path):
            yield handle
    finally:
        os.close(handle)


def size_of_lines(lines: Sequence[bytes]) -> int:
    """Return the bytes of lines with their line feeds."""
    return sum(len(line) + 1 for line in lines)


def append_line(handle: int, end: int, text: bytes) -> None:
    """Append a line and flush it to the disk.

    Args:
        handle: descriptor from `locked_file`.
        end: of the last complete line, behind its line feed; what a crash left behind it is removed.
        text: the new line, without a line feed.
    """
    os.ftruncate(handle, end)
    data = text + b"\n"
    while data:
        data = data[os.write(handle, data) :]
    os.fsync(handle)
