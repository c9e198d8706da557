"""Open the engine of a session, and find it again by name, because a Prefect task cannot take an engine as argument."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, assert_never

from zk0.audit.ledger_heads import HeadSigner
from zk0.diagnostics import SESSION_LOG
from zk0.errors import FederationError
from zk0.federation.protocol.buffered_federation import BufferedFederation
from zk0.federation.protocol.client_app import STEPS, ProgressListener
from zk0.federation.protocol.collect import Federation
from zk0.federation.protocol.received_log import RECEIVED_JOURNAL, ReceivedLog
from zk0.federation.protocol.secure_federation import SecureFederation
from zk0.settings.dataset_settings import ClientSettings
from zk0.settings.session import Session
from zk0.storage.session_folder import SessionFolder
from zk0.training.gpu_share import max_useful_workers, shares_gpu

_federations: dict[str, Federation] = {}


@contextmanager
def open_federation(
    session: Session, name: str, folder: Path, on_step: ProgressListener | None = None
) -> Iterator[Federation]:
    """Open the federation of a session; the end of the block ends all processes of its engine.

    Args:
        session: names the engine and the clients.
        name: of the federation, for `get_federation`.
        folder: of the session; clients on this machine have their scratch folders in it.
        on_step: called with the progress of clients on this machine.

    Raises:
        FederationError: the federation is open already, or the engine does not start.
    """
    if name in _federations:
        raise FederationError(f"{name}: this federation is open already")
    clients = _joined_clients(folder) or session.initial_client_names()
    nodes = [_node_config(session, client, folder) for client in session.local_clients()]
    with _grid(session, nodes, folder, _steps_only(on_step)) as (grid, nodes_file):
        settings = session.federation
        log = _received_log(session, name)
        heads = _head_signer(session, name, folder)
        kind = _federation_kind(session)
        _federations[name] = kind(
            grid,
            clients,
            settings.round_timeout_seconds,
            nodes_file,
            session.min_clients(),
            log,
            settings.feature_timeout_seconds,
            heads,
            share_gpus=session.training.device != "cpu" and session.training.gpu_share > 0,
            may_lack=settings.engine == "deployment",
        )
        try:
            yield _federations[name]
        finally:
            del _federations[name]


def _steps_only(on_step: ProgressListener | None) -> ProgressListener | None:
    """Return a listener that passes on what is done; None where nobody listens."""
    if on_step is None:
        return None
    return lambda *event: on_step(*event) if event[-1] in STEPS else None


def get_federation(name: str) -> Federation:
    """Return the open federation of this name.

    Raises:
        FederationError: none is open.
    """
    if name not in _federations:
        raise FederationError(f"{name}: no federation of that name is open in this process")
    return _federations[name]


def get_buffered_federation(name: str) -> BufferedFederation:
    """Return the open federation of this name, which a session with `federation.mode = "buffered"` has opened.

    Raises:
        FederationError: none is open.
    """
    found = get_federation(name)
    assert isinstance(found, BufferedFederation), f"{name} was opened for synchronous rounds"
    return found


def get_secure_federation(name: str) -> SecureFederation:
    """Return the open federation of this name, which a session with `federation.secure` has opened.

    Raises:
        FederationError: none is open.
    """
    found = get_federation(name)
    assert isinstance(found, SecureFederation), f"{name} was opened for updates that are not masked"
    return found


def _federation_kind(session: Session) -> type[Federation]:
    if session.federation.secure:
        return SecureFederation
    return BufferedFederation if session.federation.mode == "buffered" else Federation


def _received_log(session: Session, name: str) -> ReceivedLog:
    """Return the record of received answers in the server's folder; engines of one machine need none."""
    if session.federation.engine != "deployment":
        return ReceivedLog(None, name)
    from zk0.federation.network.server import ServerFolder

    server = ServerFolder(Path(session.federation.server))
    return ReceivedLog(server.path / RECEIVED_JOURNAL, name, server.operations)


def _head_signer(session: Session, name: str, folder: Path) -> HeadSigner | None:
    """Return the signer of the session's ledger; None on engines of one machine, whose nodes can read the ledger."""
    if session.federation.engine != "deployment":
        return None
    from zk0.federation.network.server import ServerFolder

    return HeadSigner(SessionFolder(folder).ledger, name, ServerFolder(Path(session.federation.server)).ledger_key)


def _joined_clients(folder: Path) -> tuple[str, ...]:
    """Return the clients of a session that is resumed: they must join again. Empty for a new session."""
    setup = folder / "session_setup.json"
    if not setup.is_file():
        return ()
    return tuple(str(member["client"]) for member in json.loads(setup.read_text(encoding="utf-8"))["members"])


def _node_config(session: Session, client: ClientSettings, folder: Path) -> dict[str, Any]:
    has_processes = session.federation.engine == "ray" or session.federation.workers > 0
    return {
        **({"session_log": str(folder / SESSION_LOG)} if has_processes else {}),
        "client": client.model_dump_json(),
        "scratch": str(folder / "clients" / client.name),
        "cache": str(Path(session.cache_dir)),
        "videos": str(folder),
    }


@contextmanager
def _grid(
    session: Session,
    nodes: list[dict[str, Any]],
    folder: Path,
    on_step: ProgressListener | None,
) -> Iterator[tuple[Any, Path | None]]:
    """Start the session's engine; yield its grid, and the file of the nodes' configurations that Ray's actors read."""
    settings = session.federation
    if settings.engine == "local":
        from zk0.federation.engines.local import LocalGrid

        max_workers = partial(max_useful_workers, session.training)
        with LocalGrid(nodes, settings.workers, folder / "server", on_step, max_workers) as grid:
            yield grid, None
        return
    if settings.engine == "deployment":
        from zk0.federation.engines.deployment import DeploymentGrid
        from zk0.federation.network.server import ServerFolder

        endpoint = ServerFolder(Path(settings.server)).endpoint()
        with DeploymentGrid(
            endpoint, folder / "server" / "inbox", settings.nodes, settings.absence_seconds
        ) as deployed:
            yield deployed, None
        return
    if settings.engine == "ray":
        from zk0.federation.engines.ray import open_ray_grid

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else actors without a GPU share see no GPU
        gpus = session.training.gpu_share if shares_gpu(session.training) else 0.0
        nodes_file = folder / "server" / "nodes.json"
        nodes_file.parent.mkdir(parents=True, exist_ok=True)
        nodes_file.write_text(json.dumps(nodes), encoding="utf-8")
        cluster = settings.ray_address
        with open_ray_grid(nodes, settings.workers, gpus, folder / "server", on_step, cluster) as ray:
            yield ray, nodes_file if cluster is None else None
        return
    assert_never(settings.engine)
