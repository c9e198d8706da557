"""Lines in a file, each chained to the one before, that survive a crash at any byte.

A line is JSON that begins with `{"previous":"<64 hex digits>"`: the SHA-256 of the bytes of the line before without its
line feed, 64 zeros in the first one. A line counts once its line feed is on the disk.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zk0.disk import room_for
from zk0.errors import LedgerError
from zk0.weights import sync_folder

START = "0" * 64
"""What the first line is chained to."""


def line_digest(line: bytes) -> str:
    """SHA-256 of a line without its line feed."""
    return hashlib.sha256(line).hexdigest()


def whole_lines(path: Path) -> list[bytes]:
    """The lines that are whole, without their line feeds; none where there is no file yet.

    Raises:
        LedgerError: the file cannot be read.
    """
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as e:
        raise LedgerError(f"{path}: cannot be read ({e.strerror})") from e


def last_digest(lines: list[bytes]) -> str:
    """What the next line is chained to."""
    return line_digest(lines[-1]) if lines else START


def check_chained(path: Path, number: int, previous: str, expected: str) -> None:
    """Raises LedgerError where line `number` (from 1) is not chained to the one before it."""
    if previous != expected:
        raise LedgerError(
            f"{path} line {number}: chained to {previous[:12]}, expected {expected[:12]}: "
            "a line before it was changed, added or removed"
        )


@contextmanager
def alone(path: Path) -> Iterator[int]:
    """The file, made if need be, with nobody else in it; as a descriptor that appends.

    Raises:
        DiskFull: there is no room for a line; whoever appends the next one removes what there is of it.
    """
    # the lock goes with the process, so a killed writer never leaves it behind
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if new:
            sync_folder(path.parent)
        with room_for(path):
            yield handle
    finally:
        os.close(handle)


def append_line(handle: int, lines: list[bytes], text: bytes) -> None:
    """Put a line behind `lines` (all that are whole) and on the disk; drops what a crash left behind them."""
    os.ftruncate(handle, sum(len(whole) + 1 for whole in lines))
    data = text + b"\n"
    while data:
        data = data[os.write(handle, data) :]
    os.fsync(handle)
