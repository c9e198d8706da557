"""How Prefect logs an error that zk0 raises on purpose: its text says all, so without a traceback."""

import logging

from zk0.errors import Zk0Error

_RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")
"""Loggers of the lines that the UI shows with a run."""


def log_own_errors_without_traceback() -> None:
    """Let the loggers of Prefect's runs leave out the traceback of a `Zk0Error`; other errors are bugs and keep it."""
    for name in _RUN_LOGGERS:
        logging.getLogger(name).addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, Zk0Error):
        text = f"{type(error).__name__}: {error}"
        record.msg, record.args = record.getMessage().replace(repr(error), text), ()
        record.exc_info = record.exc_text = None
    return True
