"""Which client a node of a simulation is."""

import json
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, RecordDict

from zk0.errors import FederationError
from zk0.federation.protocol.process_clients import node_config


def test_a_node_of_a_simulation_has_the_configuration_of_its_partition(tmp_path: Path) -> None:
    file = tmp_path / "nodes.json"
    file.write_text(json.dumps([{"scratch": "a"}, {"scratch": "b"}]))
    request = ConfigRecord({"nodes": str(file)})

    def node(partition: int) -> Context:
        return Context(1, partition, {"partition-id": partition, "num-partitions": 3}, RecordDict(), {})

    assert node_config(request, node(1)) == {"scratch": "b"}
    with pytest.raises(FederationError, match=r"node 3 of the simulation has no client: .*nodes.json lists 2"):
        node_config(request, node(2))
