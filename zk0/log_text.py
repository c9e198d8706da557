"""Log lines of processes that handle words of others, escaped: they neither change a terminal nor look like lines."""

import sys
import threading
import traceback
import unicodedata
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from loguru import logger

from zk0.records import INVISIBLE

_NEXT_LINE = "\n    | "
"""Begins each further line of a message, which thereby is none of the log."""
_MAX_ERRORS = 20
"""Of a chain of errors."""


def escape_controls(text: str) -> str:
    r"""Return the text on one line, with escapes in place of characters that are not shown.

    >>> escape_controls("a\x1b[2J\r\nb\u202e\tc")
    'a\\x1b[2J\\r\\nb\\u202e\tc'
    """
    if text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def clean_lines(text: str) -> str:
    r"""Return the text with the same lines, of which only the first can be taken for a line of a log.

    >>> print(clean_lines("first\n2026-01-01 | INFO | forged\x07"))
    first
        | 2026-01-01 | INFO | forged\x07
    """
    return _NEXT_LINE.join(escape_controls(line) for line in text.split("\n"))


def clean_traceback(error: BaseException) -> str:
    """Return the traceback of an error and of those that caused it; the message of each is on one line."""
    parts = []
    for one in list(_chain(error))[:_MAX_ERRORS]:
        frames = "".join(traceback.format_tb(one.__traceback__))
        head = f"Traceback (most recent call last):\n{frames}" if frames else ""
        shown = "\n".join(escape_controls(line) for line in head.split("\n"))
        parts.append(f"{shown}{escape_controls(type(one).__qualname__)}: {escape_controls(str(one))}")
    return "\n\nCaused by, or together with:\n\n".join(parts)


def write_clean_logs() -> None:
    """Let every log line and every uncaught error of this process be escaped."""
    logger.configure(patcher=_clean_record)
    sys.excepthook = _print_uncaught
    threading.excepthook = lambda arguments: _print_uncaught(
        arguments.exc_type, arguments.exc_value, arguments.exc_traceback
    )


def _escaped(character: str) -> str:
    if character == "\t" or unicodedata.category(character) not in INVISIBLE:
        return character
    return character.encode("unicode_escape").decode("ascii")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what is in it, and what caused it, each once."""
    found, seen = [error], set[int]()
    while found:
        one = found.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        inner = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        cause = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
        found += [*inner, *([cause] if cause else [])]


def _clean_record(record: Any) -> None:
    """Clean the message of a log record; its error becomes part of it."""
    message = clean_lines(record["message"])
    if (raised := record["exception"]) is not None and raised.value is not None:
        message = f"{message}\n{clean_traceback(raised.value)}"
    record["message"], record["exception"] = message, None


def _print_uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is not None and not isinstance(error, SystemExit):
        sys.stderr.write(f"{clean_traceback(error)}\n")
