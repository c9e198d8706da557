"""Flower's own simulation engine on Ray, kept warm for a whole session.

`run_simulation` is deprecated in flwr; this is the one file that changes when it goes.
"""

import queue
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flwr.app import Message, RecordDict

from zk0.errors import FederationError

_START_SECONDS = 180.0
_STOP_SECONDS = 60.0


class RayGrid:
    """Flower's in-memory grid, handed out of its ServerApp to whoever drives the session."""

    def __init__(self, grid: Any) -> None:
        self._grid = grid

    def get_nodes(self) -> Sequence[Any]:
        """All virtual nodes."""
        return list(self._grid.get_nodes())

    def make_message(self, content: RecordDict, node: int, kind: str, ttl: float, group: str) -> Message:
        """A message of this run. Outside of Flower's process only Metadata tells the run."""
        from flwr.app import Metadata

        metadata = Metadata(self._grid.run.run_id, uuid.uuid4().hex, 1, node, "", group, time.time(), ttl, kind)
        return Message(content=content, metadata=metadata)

    def push_messages(self, messages: Sequence[Message]) -> Sequence[str]:
        """Hand messages out; answers their ids."""
        return list(self._grid.push_messages(messages))

    def pull_messages(self, ids: Sequence[str]) -> Sequence[Message]:
        """Replies that have arrived, each once."""
        return list(self._grid.pull_messages(ids))

    def forget(self, ids: Sequence[str]) -> None:
        """Flower's simulation drops what nobody asks for when it ends."""


@contextmanager
def ray_grid(nodes: int, workers: int) -> Iterator[RayGrid]:
    """A warm simulation of `nodes` virtual nodes on `workers` processes.

    Raises:
        FederationError: Ray is not installed, or the simulation does not start.
    """
    try:
        import ray  # noqa: F401
        from flwr.server import Grid, ServerApp
        from flwr.simulation import run_simulation
    except ImportError as e:
        raise FederationError('engine "ray" needs Ray: install zk0[ray] (uv sync --extra ray)') from e
    from zk0.federation.client_app import app as client_app

    handed: queue.Queue[Any] = queue.Queue()
    done = threading.Event()
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Any) -> None:
        handed.put(grid)
        done.wait()

    def run() -> None:
        try:
            run_simulation(
                server_app,
                client_app,
                num_supernodes=nodes,
                backend_config={
                    "client_resources": {"num_cpus": 1.0, "num_gpus": 0.0},
                    "init_args": {"num_cpus": workers, "include_dashboard": False, "log_to_driver": False},
                },
            )
        except Exception as e:  # carried to the driving thread
            handed.put(e)

    thread = threading.Thread(target=run, daemon=True, name="zk0-ray")
    thread.start()
    try:
        try:
            grid = handed.get(timeout=_START_SECONDS)
        except queue.Empty as e:
            raise FederationError(f"the Ray simulation did not start within {_START_SECONDS:g} s") from e
        if isinstance(grid, Exception):
            raise FederationError(f"the Ray simulation did not start: {grid}") from grid
        yield RayGrid(grid)
    finally:
        done.set()
        thread.join(_STOP_SECONDS)
