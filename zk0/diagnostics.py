"""What else belongs in a log: the lines of the libraries that work for us, and how much memory it took."""

import logging
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from loguru import logger

LIBRARIES = ("flwr", "ray", "lerobot", "transformers", "datasets", "accelerate", "huggingface_hub")
"""They log by Python's own `logging`."""


@contextmanager
def libraries_logged() -> Iterator[None]:
    """What these libraries say from INFO on goes where our own lines go, under their own names, and nowhere else.

    Inside of itself it does nothing: a process that does it for all its life spares itself the changes.
    """
    loggers = [one for name in LIBRARIES if not _is_bridged(one := logging.getLogger(name))]
    bridge = _Bridge(logging.INFO)
    before = [(one, one.handlers, one.level, one.propagate) for one in loggers]
    for one in loggers:
        one.handlers, one.propagate = [bridge], False  # not on the terminal as well, through a progress bar
        one.setLevel(one.level or logging.INFO)
    try:
        yield
    finally:
        for one, handlers, level, propagate in before:
            one.handlers, one.propagate = handlers, propagate
            one.setLevel(level)


def memory_told() -> str:
    """The most that this process ever had resident, and had on each GPU; GB are 1e9 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    told = [f"memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.2f} GB at most"]
    torch = sys.modules.get("torch")  # who has not imported it has nothing on a GPU
    if torch is not None and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            peak, whole = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
            told.append(f"GPU {device} {peak / 1e9:.2f} of {whole / 1e9:.1f} GB")
    return ", ".join(told)


def _is_bridged(library: logging.Logger) -> bool:
    return any(isinstance(handler, _Bridge) for handler in library.handlers)


class _Bridge(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            level: str | int = logger.level(record.levelname).name
        except ValueError:
            level = record.levelno
        named = logger.patch(
            lambda said: said.update(name=record.name, function=record.funcName, line=record.lineno)  # type: ignore[call-arg]
        )
        named.opt(exception=record.exc_info).log(level, "{}", record.getMessage())
