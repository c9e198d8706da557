"""What is told when a disk takes no more, and the memory in which the system keeps files."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zk0.errors import DiskFull

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No room, no room for this user, no room in one file."""


@contextmanager
def room_for(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Writing to `path`: where the disk takes no more, the error names the path and says what to do.

    `errors` are those of libraries in Rust, which end with `(os error N)`.

    Raises:
        DiskFull: there is no room; any other error stays as it is.
    """
    caught: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        yield
    except caught as e:
        if (number := _number(e)) not in _FULL:
            raise
        why = {errno.EFBIG: "file too large for its disk"}.get(number, "no room on its disk")
        raise DiskFull(f"{path}: cannot be written whole: {why}; make room there") from e


def forget_pages(path: Path) -> None:
    """Let go of the memory in which the system keeps a file, for what is written next; nothing where there is none.

    The host of a virtual machine takes back memory that lies idle, and bringing it again costs more than averaging.
    """
    if hasattr(os, "posix_fadvise"):
        with suppress(FileNotFoundError), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _number(error: Exception) -> int:
    """Of an error of the system, or of the first of several; 0: it says none.

    >>> _number(RuntimeError("I/O error: No space left on device (os error 28)"))
    28
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"(?:\(os error |\[Errno )(\d+)", str(error))
    return int(found[1]) if found else 0
