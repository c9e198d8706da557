"""The log files of a session."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loguru import logger
from prefect.exceptions import Pause

from zk0.diagnostics import libraries_logged

_KEEP: dict[str, Any] = {"rotation": "500 MB", "retention": "10 days", "compression": "zip", "level": "INFO"}


def _is_server(record: Any) -> bool:
    return not str(record["name"]).startswith("zk0.")


@contextmanager
def session_logs(folder: Path) -> Iterator[None]:
    """Every line, Flower's, Ray's and lerobot's too, goes to simulation.log; the server's own to server/server.log."""
    everything = logger.add(folder / "simulation.log", **_KEEP)
    server = logger.add(folder / "server" / "server.log", filter=_is_server, **_KEEP)
    try:
        with libraries_logged():
            yield
    except Pause:
        logger.info("suspended until someone answers in the Prefect UI")
        raise
    except BaseException as e:
        logger.error("{}: {}", type(e).__name__, e)
        raise
    finally:
        logger.remove(everything)
        logger.remove(server)
