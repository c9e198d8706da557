"""Report a full disk by the path that does not fit, and drop files from the page cache."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zk0.errors import DiskFull

_DISK_FULL_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space on the device, the user's quota is used up, the file exceeds the allowed size."""


@contextmanager
def translate_disk_full(path: Path, *library_errors: type[Exception]) -> Iterator[None]:
    """Raise DiskFull where the block fails because the disk is full; any other error passes unchanged.

    Args:
        path: the file or folder that the block writes; the message names it.
        library_errors: further errors to inspect: libraries written in Rust report the system's error in the text of
            their own, as `(os error N)`.

    Raises:
        DiskFull: the disk is full, the quota is used up, or the file exceeds the allowed size.
    """
    caught: tuple[type[Exception], ...] = (OSError, *library_errors)
    try:
        yield
    except caught as e:
        if (number := _error_number(e)) not in _DISK_FULL_NUMBERS:
            raise
        reason = {errno.EFBIG: "the file exceeds the allowed size"}.get(number, "no space left on its disk")
        raise DiskFull(f"{path}: cannot be written: {reason}; free some space") from e


def drop_page_cache(path: Path) -> None:
    """Drop a file from the page cache, so that the next file written reuses that memory; a missing file is ignored.

    The host of a virtual machine reclaims idle memory, and allocating it again takes longer than averaging the updates.
    """
    if hasattr(os, "posix_fadvise"):
        with suppress(FileNotFoundError), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _error_number(error: Exception) -> int:
    """Number of a system error, also of one that is quoted in another error's text; 0 if there is none.

    >>> _error_number(RuntimeError("I/O error: No space left on device (os error 28)"))
    28
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"(?:\(os error |\[Errno )(\d+)", str(error))
    return int(found[1]) if found else 0
