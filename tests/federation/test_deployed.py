"""Real SuperLink, SuperNodes, TLS, keys and gateway on this machine: the same digest as without any of them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from zk0.errors import CallRefused, FederationError
from zk0.session import Session

pytestmark = pytest.mark.timeout(900)


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
    assert [one.model_copy(update={"score": two.score}) for one, two in zip(found, scores, strict=True)] == list(scores)
    assert [one.score.dataset for one in found] == ["local:a", "local:b"]  # where they lie is nobody's business
    assert [one.score.policy_loss for one in found] == [one.score.policy_loss for one in scores]
    for name, node in deployment.nodes.items():
        assert (node.path / "scratch" / "client.log").read_text().count(f"{name}: round 2 step 3/3") == 1
        assert len(list((node.path / "scratch" / "updates").glob("*.safetensors"))) == 1
        assert list((node.path / "scratch").glob("asked-*")) == []
    assert not (tmp_path / "there/server/inbox").exists()
    assert {(n.name, n.status) for n in deployment.server.nodes()} == {("a", "online"), ("b", "online")}
    assert [(run.status.status, run.status.sub_status) for run in runs_of(deployment)] == 4 * [
        ("finished", "completed")
    ]


def test_what_the_server_took_is_what_the_nodes_sent(deployment: Any) -> None:
    """Both have signed for each answer: the same text, the same weights, and nothing besides."""
    import hashlib

    from zk0.journal import AcceptedJournal, Journal

    took = AcceptedJournal(deployment.server.path / "accepted.jsonl").read()
    assert [one.refusal for one in took] == [""] * 8
    for name, node in deployment.nodes.items():
        sent = Journal(node.scratch / "sent.jsonl").read()
        mine = [one for one in took if one.client == name]
        assert [one.kind for one in mine] == ["join", "train", "train", "evaluate"]
        assert [(s.kind, s.round, s.to) for s in sent] == [(t.kind, t.round, t.session) for t in mine]
        assert [hashlib.sha256(s.text.encode()).hexdigest() for s in sent] == [t.text for t in mine]
        assert [s.weights.digest if s.weights else "" for s in sent] == [t.weights for t in mine]
        assert [s.weights.bytes if s.weights else 0 for s in sent] == [t.bytes for t in mine]


class TestStrangers:
    """Whoever has the authority's certificate, which is no secret, but no key that is enrolled."""

    @pytest.fixture
    def outside(self, deployment: Any) -> Iterator[Any]:
        from zk0.federation.api import Api, Endpoint

        kit = deployment.nodes["a"].kit()
        authority = deployment.nodes["a"].path / "ca.crt"
        with Api(Endpoint(address=kit.server, authority=authority, secret=deployment.server.path / "secret")) as api:
            yield api

    def test_runs_and_nodes_are_not_theirs_to_make(self, deployment: Any, outside: Any) -> None:
        from flwr.proto import control_pb2, fab_pb2, fleet_pb2, runtime_pb2

        from zk0.federation.authority import make_node_key, wire_key

        runs, nodes = len(runs_of(deployment)), deployment.server.nodes()
        key = wire_key(make_node_key()[1])
        bundle = fab_pb2.Fab(hash_str="x", content=b"x")
        for path, asked in {
            "/v1/control/start-run": control_pb2.StartRunRequest(fab=bundle),
            "/v1/control/list-nodes": control_pb2.ListNodesRequest(),
            "/v1/control/register-node": control_pb2.RegisterNodeRequest(public_key=key),
            "/v1/control/../control/list-runs": control_pb2.ListRunsRequest(),
            "/v1/fleet/../control/list-runs": control_pb2.ListRunsRequest(),
            "/v1/fleet/%2e%2e/control/list-runs": control_pb2.ListRunsRequest(),
            "/v1/runtime/acquire-task": runtime_pb2.AcquireTaskRequest(supported_task_types=["flwr-serverapp"]),
            "/v1/fleet/register-node": fleet_pb2.RegisterNodeFleetRequest(public_key=key),
        }.items():
            with pytest.raises(FederationError, match="answers 404"):
                outside.call(path, asked, control_pb2.ListRunsResponse)
        for asked in (fleet_pb2.ActivateNodeRequest(public_key=key), fleet_pb2.PullMessagesRequest()):
            name = {"ActivateNodeRequest": "activate-node"}.get(type(asked).__name__, "pull-messages")
            with pytest.raises(CallRefused, match="answers 401"):
                outside.call(f"/v1/fleet/{name}", asked, fleet_pb2.PullMessagesResponse)
        assert (len(runs_of(deployment)), deployment.server.nodes()) == (runs, nodes)

    def test_on_the_machine_itself_a_run_is_nothing_without_the_secret(self, deployment: Any) -> None:
        from zk0.federation.api import Api
        from zk0.federation.task import SERVER_APP, acquire

        endpoint = deployment.server.endpoint()
        with (
            Api(endpoint.model_copy(update={"secret": None})) as api,
            pytest.raises(CallRefused, match="answers 401"),
        ):
            acquire(api, SERVER_APP)
        other = deployment.folder / "other"
        other.write_bytes(b"x" * 32)
        with Api(endpoint.model_copy(update={"secret": other})) as api, pytest.raises(CallRefused, match="answers 401"):
            acquire(api, SERVER_APP)
        with Api(endpoint) as api:
            assert acquire(api, SERVER_APP) is None

    def test_nothing_but_the_gateway_listens_to_the_network(self, deployment: Any) -> None:
        """The gateway itself is bound as it was asked for, here to loopback."""
        inodes = set()
        for pid in deployment.processes():
            for link in Path(f"/proc/{pid}/fd").glob("*"):
                with suppress(OSError):
                    inodes.add(str(link.readlink()))
        listening = set()
        for line in [*Path("/proc/net/tcp").read_text().splitlines(), *Path("/proc/net/tcp6").read_text().splitlines()]:
            parts = line.split()
            if parts[3] == "0A" and f"socket:[{parts[9]}]" in inodes:
                listening.add(parts[1].rpartition(":")[0])
        assert listening == {"0100007F"}

    def test_no_key_is_told_on_a_command_line(self, deployment: Any) -> None:
        lines = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in deployment.processes())
        assert b"PRIVATE" not in lines
        assert b"local:" not in lines  # nor where data lies


def test_code_that_a_server_ships_is_not_run(deployment: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Flower would install the bundle of a run on every node and import it; here it is carried and never opened."""
    import io
    import zipfile

    from flwr.app import ConfigRecord, RecordDict

    from zk0.federation import run
    from zk0.federation.deployed import DeployedGrid

    proof, bundle = tmp_path / "proof", io.BytesIO()
    code = f"open({str(proof)!r}, 'w').write('ran')\n"
    with zipfile.ZipFile(io.BytesIO(run._bundle())) as ours, zipfile.ZipFile(bundle, "w") as theirs:
        about = ours.read("pyproject.toml").decode().replace("zk0.federation.client_app:app", "evil.app:app")
        theirs.writestr("pyproject.toml", about)
        theirs.writestr("evil/__init__.py", code)
        theirs.writestr("evil/app.py", code + "from zk0.federation.client_app import app\n")
    monkeypatch.setattr(run, "_bundle", bundle.getvalue)
    with DeployedGrid(deployment.server.endpoint(), tmp_path / "inbox") as grid:
        (node, *_) = grid.get_nodes()
        content = RecordDict({"config": ConfigRecord({"terms": "{}"})})
        ids = grid.push_messages([grid.make_message(content, node.node_id, "query", 60.0, "evil")])
        while not (replies := grid.pull_messages(ids)):
            pass
    assert "validation errors for Terms" in str(replies[0].content["answer"]["refusal"])  # said by the zk0 of the node
    assert not proof.exists()
    assert [p for n in deployment.nodes.values() for p in n.path.rglob("*evil*")] == []


def test_flowers_own_command_line_sees_the_rounds(deployment: Any) -> None:
    environment = {**os.environ, "FLWR_HOME": str(deployment.server.path / "flower")}
    command = [str(Path(sys.executable).with_name("flwr")), "list", "zk0", "--format", "json"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert {run["status"] for run in json.loads(said)["runs"]} == {"finished:completed"}


def runs_of(deployment: Any) -> list[Any]:
    """All runs that the SuperLink knows, oldest first."""
    from flwr.proto.control_pb2 import ListRunsRequest, ListRunsResponse

    from zk0.federation.api import Api

    with Api(deployment.server.endpoint()) as api:
        found = api.call("/v1/control/list-runs", ListRunsRequest(), ListRunsResponse).run_dict
    return sorted(found.values(), key=lambda run: run.pending_at)
