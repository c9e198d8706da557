"""Log lines of the libraries that zk0 uses, forwarded to loguru, and the peak memory of a process.

Every process of a session (flow, worker, node) forwards the libraries' lines to its own log files, and logs its peak
memory at the end of a round, so that a session's folder alone explains a failure.
"""

import logging
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loguru import logger

SESSION_LOG = "simulation.log"
"""Name of the log of a whole session, which all processes on the session's machine append to."""
WORKS_FOR = "works_for"
"""Key of what loguru adds to lines that are logged for a client: its name, and the round."""
LOGGED_LIBRARIES = ("flwr", "ray", "lerobot", "transformers", "datasets", "accelerate", "huggingface_hub")
"""Libraries that log through Python's `logging`."""
_STATM = Path("/proc/self/statm")


def log_format(record: Any) -> str:
    """Return the format of a line of a log file: with the id of its process, and client and round if it is for one."""
    works_for = f"{{extra[{WORKS_FOR}]}} | " if WORKS_FOR in record["extra"] else ""
    head = f"{{time:YYYY-MM-DD HH:mm:ss.SSS}} | {{level: <8}} | {{process}} | {works_for}"
    return f"{head}{{name}}:{{function}}:{{line}} - {{message}}\n{{exception}}"


@contextmanager
def forward_library_logs() -> Iterator[None]:
    """Forward the libraries' log lines from INFO on to loguru, under their own logger names.

    Their own handlers are removed meanwhile, so that no line appears twice or breaks a progress bar. A nested call
    changes nothing: long-lived processes forward for their whole life, in-process clients for one message.
    """
    loggers = [one for name in LOGGED_LIBRARIES if not _is_forwarded(one := logging.getLogger(name))]
    handler = _LoguruHandler(logging.INFO)
    before = [(one, one.handlers, one.level, one.propagate) for one in loggers]
    for one in loggers:
        one.handlers, one.propagate = [handler], False
        one.setLevel(one.level or logging.INFO)
    try:
        yield
    finally:
        for one, handlers, level, propagate in before:
            one.handlers, one.propagate = handlers, propagate
            one.setLevel(level)


def memory_summary() -> str:
    """Current and peak resident memory of this process, and peak memory on each GPU, as text; a GB is 1e9 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    now = f"{resident_bytes() / 1e9:.2f} GB now, " if _STATM.is_file() else ""
    parts = [f"memory {now}{peak / 1e9:.2f} GB at most"]
    torch = sys.modules.get("torch")  # a process that has not imported torch uses no GPU
    if torch is not None and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            used, total = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
            parts.append(f"GPU {device} {used / 1e9:.2f} of {total / 1e9:.1f} GB")
    return ", ".join(parts)


def resident_bytes() -> int:
    """Resident memory of this process now, from Linux's /proc."""
    return int(_STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def _is_forwarded(library: logging.Logger) -> bool:
    return any(isinstance(handler, _LoguruHandler) for handler in library.handlers)


class _LoguruHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            level: str | int = logger.level(record.levelname).name
        except ValueError:
            level = record.levelno
        patched = logger.patch(
            lambda entry: entry.update(name=record.name, function=record.funcName, line=record.lineno)  # type: ignore[call-arg]
        )
        patched.opt(exception=record.exc_info).log(level, "{}", record.getMessage())
