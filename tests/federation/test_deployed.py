"""Real SuperLink, SuperNodes, TLS, keys and gateway on this machine: the same digest as without any of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zk0.session import Session


@pytest.fixture(scope="module")
def deployment(deploy: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    started = deploy(tmp_path_factory.mktemp("deployment"))
    yield started
    started.stop()


def digests(session: Session, folder: Path, drive: type) -> tuple[list[str], Any]:
    """Two rounds; the digest of the start and of each round, and what the clients say of the last one."""
    from zk0.federation.open import open_federation

    driven = drive(session, folder)
    with open_federation(session, "mini", folder) as federation:
        driven.begin(federation)
        for _ in range(2):
            collected = driven.train(federation)
            assert collected.refusals == ()
            assert [u.client for u in collected.updates] == ["a", "b"]
            driven.average(collected.updates)
        judged = driven.evaluate(federation)
    assert judged.refusals == ()
    return [c.digest for c in driven.history], judged.scores


def test_a_federation_over_the_network_ends_with_the_same_digest(
    deployment: Any, session_of: Callable[..., Session], drive: type, tmp_path: Path
) -> None:
    here, scores = digests(session_of(("a", "b")), tmp_path / "here", drive)
    there, found = digests(deployment.session(), tmp_path / "there", drive)
    assert there == here
    assert len(set(here)) == 3
    assert found == scores
    for name, node in deployment.nodes.items():
        assert (node.path / "scratch" / "client.log").read_text().count(f"{name}: round 2 step 3/3") == 1
        assert len(list((node.path / "scratch" / "updates").glob("*.safetensors"))) == 1
        assert list((node.path / "scratch").glob("asked-*")) == []
    assert not (tmp_path / "there/server/inbox").exists()
    assert {(n.name, n.status) for n in deployment.server.nodes()} == {("a", "online"), ("b", "online")}
    assert [(run.status.status, run.status.sub_status) for run in runs_of(deployment)] == 4 * [
        ("finished", "completed")
    ]


def runs_of(deployment: Any) -> list[Any]:
    """All runs that the SuperLink knows, oldest first."""
    from flwr.proto.control_pb2 import ListRunsRequest, ListRunsResponse

    from zk0.federation.api import Api

    with Api(deployment.server.endpoint()) as api:
        found = api.call("/v1/control/list-runs", ListRunsRequest(), ListRunsResponse).run_dict
    return sorted(found.values(), key=lambda run: run.pending_at)
