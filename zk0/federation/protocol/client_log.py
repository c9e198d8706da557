"""The log file of a client: one process may hold several clients, and each of them has its own file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loguru import logger

from zk0.diagnostics import WORKS_FOR, forward_library_logs, log_format

_logs: dict[str, int] = {}
_session_logs: set[Path] = set()
_MAX_OPEN_LOGS = 128
"""An operating system commonly limits a process to 1024 open files."""


@contextmanager
def client_log(scratch: Path, session_log: Path | None = None, works_for: str = "") -> Iterator[None]:
    """Write what is logged in the block to `client.log` in a client's scratch folder, too.

    The file stays open for the client's next message, because opening it takes longer than most messages.

    Args:
        scratch: the client's folder.
        session_log: the log of the whole session, if this process is not the one that keeps it.
        works_for: client and round, as each line has them; empty: the folder's name.
    """
    if session_log is not None and session_log not in _session_logs:
        _session_logs.add(session_log)
        # the session's own process rotates the file; `watch` follows it
        logger.add(session_log, filter=_is_of_client, format=log_format, level="INFO", diagnose=False, watch=True)
    scratch.mkdir(parents=True, exist_ok=True)
    name = str(scratch)
    if name not in _logs:
        if len(_logs) == _MAX_OPEN_LOGS:
            logger.remove(_logs.pop(next(iter(_logs))))
        options: dict[str, Any] = {
            "rotation": "500 MB",
            "retention": "10 days",
            "compression": "zip",
            "diagnose": False,
            "watch": True,
            "format": log_format,
        }
        _logs[name] = logger.add(
            scratch / "client.log", filter=lambda r: bool(r["extra"].get("client") == name), **options
        )
    with logger.contextualize(client=name, **{WORKS_FOR: works_for or scratch.name}), forward_library_logs():
        yield


def _is_of_client(record: Any) -> bool:
    return "client" in record["extra"]
