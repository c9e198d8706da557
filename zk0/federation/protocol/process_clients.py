"""The clients of this process: each is created with its first message, and kept for the next ones."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context

from zk0.errors import FederationError
from zk0.federation.protocol.request_limits import round_clock
from zk0.settings.dataset_settings import ClientSettings
from zk0.settings.plans import ClientPlan, SessionTerms

_clients: dict[str, tuple[str, Any]] = {}


def node_config(request: ConfigRecord, context: Context) -> dict[str, Any]:
    """Return the configuration of the node: its own, or on simulated engines that of its partition in a file.

    Raises:
        FederationError: the file lists no client of this partition.
    """
    if "nodes" in request and "partition-id" in context.node_config:
        nodes = json.loads(Path(str(request["nodes"])).read_text(encoding="utf-8"))
        number = int(context.node_config["partition-id"])
        if number >= len(nodes):
            raise FederationError(
                f"node {number + 1} of the simulation has no client: {request['nodes']} lists {len(nodes)}; expected "
                "as many nodes as clients"
            )
        return dict(nodes[number])
    return dict(context.node_config)


def client_for_plan(plan: ClientPlan, config: dict[str, Any]) -> Any:
    """Return the client of a plan.

    Raises:
        FederationError: the plan is another client's.
    """
    client = get_client(plan.terms, config)
    if client.name != plan.client:
        raise FederationError(f"{client.name}: got the plan of {plan.client}; join again")
    return client


def get_client(terms: SessionTerms, config: dict[str, Any]) -> Any:
    """Return the client of a scratch folder; it is created again when terms or configuration have changed."""
    key, folder = json.dumps([terms.model_dump(), config], sort_keys=True), config["scratch"]
    if folder not in _clients or _clients[folder][0] != key:
        from zk0.client.client import Client  # takes seconds

        settings = ClientSettings.model_validate_json(config["client"])
        videos = Path(config["videos"]) if "videos" in config else None
        clock = partial(round_clock, config)
        _clients[folder] = key, Client(settings, terms, Path(folder), Path(config["cache"]), videos, clock)
    return _clients[folder][1]
