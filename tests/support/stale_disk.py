"""A disk that is away once, as that of another machine that restarts."""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_away: list[re.Pattern[str]] = []
_hooks: list[bool] = []


@contextmanager
def away_once(pattern: str) -> Iterator[None]:
    """In the block, the first time that a path with this pattern is opened, listed or renamed, this fails with ESTALE.

    Code of other languages that opens files itself, such as pyarrow's, does not see it.
    """
    if not _hooks:
        _hooks.append(True)
        sys.addaudithook(_audit)  # for the rest of this process
    _away.append(re.compile(pattern))
    try:
        yield
        assert not _away, f"no path with {pattern} was opened, listed or renamed"
    finally:
        _away.clear()


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _away and event in ("open", "os.listdir", "os.scandir", "os.rename") and _away[0].search(str(arguments[0])):
        _away.clear()
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(arguments[0]))
