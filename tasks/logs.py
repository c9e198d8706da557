"""The log files of a session: simulation.log, and server/server.log."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loguru import logger
from prefect.exceptions import Pause

from zk0.diagnostics import SESSION_LOG, forward_library_logs, log_format
from zk0.errors import DiskFull

_FILE_OPTIONS: dict[str, Any] = {
    "rotation": "500 MB",
    "retention": "10 days",
    "compression": "zip",
    "level": "INFO",
    "format": log_format,
    "watch": True,
}


def _is_server(record: Any) -> bool:
    return not str(record["name"]).startswith("zk0.")


@contextmanager
def session_logs(folder: Path) -> Iterator[None]:
    """Write log lines to files in the session's folder during the block, and the error that ends it, but DiskFull.

    simulation.log has every line with the id of its process, and with client and round where it is for one: those of
    Flower, Ray and lerobot too, and those of the clients on this machine, whose worker processes append to it;
    server/server.log has those of flows and tasks.
    """
    everything = logger.add(folder / SESSION_LOG, **_FILE_OPTIONS)
    server = logger.add(folder / "server" / "server.log", filter=_is_server, **_FILE_OPTIONS)
    try:
        with forward_library_logs():
            yield
    except Pause:
        logger.info("suspended until someone answers in the Prefect UI")
        raise
    except DiskFull:  # its disk may have no room for the line either; whoever catches it reports it
        raise
    except BaseException as e:
        logger.error("{}: {}", type(e).__name__, e)
        raise
    finally:
        logger.remove(everything)
        logger.remove(server)
