"""Open the federation of a session, and find it again by name: an engine is never a task's argument."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from zk0.errors import FederationError
from zk0.federation.accepted import ACCEPTED, AcceptedLog
from zk0.federation.client_app import StepListener
from zk0.federation.collect import Federation
from zk0.federation.gpu import takes_turns, useful_workers
from zk0.session import ClientSettings, Session

_open: dict[str, Federation] = {}


@contextmanager
def open_federation(
    session: Session, name: str, folder: Path, on_step: StepListener | None = None
) -> Iterator[Federation]:
    """The federation that the session asks for, ended with all its processes on the way out.

    `folder` is the session's; clients of engines on this machine keep their scratch under it.

    Raises:
        FederationError: it is open already, or the engine cannot be started.
    """
    if name in _open:
        raise FederationError(f"{name}: this federation is open already")
    clients = _joined(folder) or session.starters()
    nodes = [_node_config(session, c, folder) for c in session.members()]
    with _grid(session, nodes, folder, on_step) as (grid, nodes_file):
        least, log = session.federation.min_updates, AcceptedLog(_accepted(session), name)
        _open[name] = Federation(grid, clients, session.federation.round_timeout_seconds, nodes_file, least, log)
        try:
            yield _open[name]
        finally:
            del _open[name]


def federation(name: str) -> Federation:
    """The open federation of that name.

    Raises:
        FederationError: there is none.
    """
    if name not in _open:
        raise FederationError(f"{name}: no federation of that name is open in this process")
    return _open[name]


def _accepted(session: Session) -> Path | None:
    """Where a server writes down what it was answered; where clients are of this machine, nobody does."""
    return Path(session.federation.server) / ACCEPTED if session.federation.engine == "deployment" else None


def _joined(folder: Path) -> tuple[str, ...]:
    """Who took part in the session when it was interrupted: they must be there to take it up."""
    ground = folder / "ground.json"
    if not ground.is_file():
        return ()
    return tuple(str(member["client"]) for member in json.loads(ground.read_text(encoding="utf-8"))["members"])


def _node_config(session: Session, client: ClientSettings, folder: Path) -> dict[str, Any]:
    return {
        "client": client.model_dump_json(),
        "scratch": str(folder / "clients" / client.name),
        "cache": str(Path(session.cache_dir)),
        "films": str(folder),
    }


@contextmanager
def _grid(
    session: Session,
    nodes: list[dict[str, Any]],
    folder: Path,
    on_step: StepListener | None,
) -> Iterator[tuple[Any, Path | None]]:
    settings = session.federation
    if settings.engine == "local":
        from zk0.federation.local import LocalGrid

        most = partial(useful_workers, session.training)
        with LocalGrid(nodes, settings.workers, folder / "server", on_step, most) as grid:
            yield grid, None
        return
    if settings.engine == "deployment":
        from zk0.federation.deployed import DeployedGrid
        from zk0.federation.server import ServerFolder

        endpoint = ServerFolder(Path(settings.server)).endpoint()
        with DeployedGrid(endpoint, folder / "server" / "inbox", settings.nodes, settings.absence_seconds) as deployed:
            yield deployed, None
        return
    from zk0.federation.ray import ray_grid

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or who asks for no share of a GPU sees none
    nodes_file = folder / "server" / "nodes.json"
    nodes_file.parent.mkdir(parents=True, exist_ok=True)
    nodes_file.write_text(json.dumps(nodes), encoding="utf-8")
    gpus = session.training.gpu_share if takes_turns(session.training) else 0.0
    with ray_grid(len(nodes), settings.workers, gpus, folder / "server", on_step) as ray:
        yield ray, nodes_file
