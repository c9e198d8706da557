"""Lines in a file, each chained to the one before, that survive a crash at any byte.

A line is JSON that begins with `{"previous":"<64 hex digits>"`: the SHA-256 of the bytes of the line before without its
line feed, 64 zeros in the first one. A line counts once its line feed is on the disk.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field, ValidationError

from zk0.disk import room_for
from zk0.errors import LedgerError
from zk0.records import Record
from zk0.weights import sync_folder

START = "0" * 64
"""What the first line is chained to."""


class ChainedLine(Record):
    """What every line says; what else it says is its file's own."""

    previous: str = Field(pattern=r"^[0-9a-f]{64}$")


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


def line_of(name: str, record: Record, previous: str) -> bytes:
    """The line that holds a record by a name, chained to `previous`."""
    line = {"previous": previous, name: record.model_dump(mode="json")}
    return json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def checked_lines[L: ChainedLine](path: Path, lines: Sequence[bytes], kind: type[L], what: str) -> Iterator[L]:
    """Lines as they are meant, each chained to the one before; `what` names them where one cannot be read.

    Raises:
        LedgerError: a line was changed, removed, added or does not parse; its number is named.
    """
    previous = START
    for number, text in enumerate(lines, start=1):
        try:
            line = kind.model_validate_json(text)
        except ValidationError as e:
            fault = e.errors(include_url=False)[0]
            where = ".".join(map(str, fault["loc"])) or "it"
            raise LedgerError(
                f"{path} line {number}: not a {what}: {where}: {fault['msg']}; put the file back as it was"
            ) from e
        check_chained(path, number, line.previous, previous)
        yield line
        previous = line_digest(text)


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
