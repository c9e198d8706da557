"""Real SuperLink, SuperNodes, TLS, keys and gateway on this machine: the same digest as without any of them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.bot.main import zk0bot_app
from zk0.errors import FederationError, RunEnded
from zk0.settings.plans import ClientPlan
from zk0.settings.session import Session

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def deployment(deploy: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    started = deploy(tmp_path_factory.mktemp("deployment"))
    yield started
    started.stop()


def digests(session: Session, folder: Path, drive: type) -> tuple[list[str], Any]:
    """Run two rounds; return the digests of the start and of each round, and the clients' scores of the last one."""
    from zk0.federation.open import open_federation

    driven = drive(session, folder)
    with open_federation(session, "mini", folder) as federation:
        driven.begin(federation)
        for _ in range(2):
            collected = driven.train(federation)
            assert collected.refusals == ()
            assert [u.client for u in collected.updates] == ["a", "b"]
            driven.average(collected.updates)
        collected_scores = driven.evaluate(federation)
    assert collected_scores.refusals == ()
    return [c.digest for c in driven.history], collected_scores.scores


def test_a_federation_over_the_network_ends_with_the_same_digest(
    deployment: Any, session_of: Callable[..., Session], drive: type, tmp_path: Path
) -> None:
    from zk0.federation.protocol.heads_audit import audited_heads, compare_with_ledger

    here, scores = digests(session_of(("a", "b")), tmp_path / "here", drive)
    there, found = digests(deployment.session(), tmp_path / "there", drive)
    assert there == here
    assert len(set(here)) == 3
    assert [one.model_copy(update={"score": two.score}) for one, two in zip(found, scores, strict=True)] == list(scores)
    assert [one.score.dataset for one in found] == ["local:a", "local:b"]  # without their folders
    assert [one.score.policy_loss for one in found] == [one.score.policy_loss for one in scores]
    for name, node in deployment.nodes.items():
        assert (node.path / "scratch" / "client.log").read_text().count(f"{name}: round 2 step 3/3") == 1
        assert len(list((node.path / "scratch").glob("sessions/*/updates/*.safetensors"))) == 1
        assert list((node.path / "scratch").glob("request-*")) == []
        (heads,) = audited_heads(node.scratch, node.read_kit().ledger_key)
        assert (heads.heads, heads.rounds, heads.without_head, heads.problem) == (3, 3, 0, "")
        assert "has all 3 heads" in compare_with_ledger(node.scratch, tmp_path / "there" / "ledger.jsonl")
    assert not (tmp_path / "there/server/inbox").exists()
    assert {(n.name, n.status) for n in deployment.server.node_statuses()} == {("a", "online"), ("b", "online")}
    assert [(run.status.status, run.status.sub_status) for run in runs_of(deployment)] == 4 * [
        ("finished", "completed")
    ]


def test_the_server_records_what_the_nodes_record(deployment: Any) -> None:
    """Both journals have the same answers: kind, round, text and weights."""
    import hashlib

    from zk0.audit.journal import ReceivedJournal, SentJournal
    from zk0.audit.journal_comparison import JournalComparison, compare_journals

    received = ReceivedJournal(deployment.server.path / "accepted.jsonl").read()
    assert [one.refusal for one in received] == [""] * 8
    for name, node in deployment.nodes.items():
        sent = SentJournal(node.scratch / "sent.jsonl").read()
        mine = [one for one in received if one.client == name]
        assert compare_journals(name, sent, received) == JournalComparison(client=name, both=len(mine))
        assert [one.kind for one in mine] == ["join", "train", "train", "evaluate"]
        assert [(s.kind, s.round, s.to) for s in sent] == [(t.kind, t.round, t.session) for t in mine]
        assert [hashlib.sha256(s.text.encode()).hexdigest() for s in sent] == [t.text for t in mine]
        assert [s.weights.digest if s.weights else "" for s in sent] == [t.weights for t in mine]
        assert [s.weights.bytes if s.weights else 0 for s in sent] == [t.bytes for t in mine]


class TestUnknownNodes:
    """A client with the authority's certificate, which is not secret, but without an enrolled key."""

    @pytest.fixture
    def outside(self, deployment: Any) -> Iterator[Any]:
        from zk0.federation.flower.api_client import ApiClient, Endpoint

        kit = deployment.nodes["a"].read_kit()
        ca_certificate = deployment.nodes["a"].path / "ca.crt"
        secret = deployment.server.path / "secret"
        with ApiClient(Endpoint(address=kit.server, ca_certificate=ca_certificate, secret=secret)) as api:
            yield api

    def test_it_cannot_create_runs_and_nodes(self, deployment: Any, outside: Any) -> None:
        from flwr.proto import control_pb2, fab_pb2, fleet_pb2, runtime_pb2

        from zk0.federation.flower.private_api import ApiMethod
        from zk0.federation.network.certificate_authority import make_node_key, public_key_pem

        def method(path: str, request: Any, response: Any) -> ApiMethod:
            return ApiMethod(path, lambda: request, response)

        runs, nodes = len(runs_of(deployment)), deployment.server.node_statuses()
        key = public_key_pem(make_node_key()[1])
        bundle = fab_pb2.Fab(hash_str="x", content=b"x")
        for path, request in {
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
                outside.call(method(path, request, control_pb2.ListRunsResponse))
        for name, request in (
            ("activate-node", fleet_pb2.ActivateNodeRequest(public_key=key)),
            ("pull-messages", fleet_pb2.PullMessagesRequest()),
        ):
            with pytest.raises(RunEnded, match="answers 401"):
                outside.call(method(f"/v1/fleet/{name}", request, fleet_pb2.PullMessagesResponse))
        assert (len(runs_of(deployment)), deployment.server.node_statuses()) == (runs, nodes)

    def test_on_the_server_itself_a_run_needs_the_secret(self, deployment: Any) -> None:
        from zk0.federation.flower.api_client import ApiClient
        from zk0.federation.flower.private_api import SERVER_APP
        from zk0.federation.flower.runtime_task import acquire_task

        endpoint = deployment.server.endpoint()
        with (
            ApiClient(endpoint.model_copy(update={"secret": None})) as api,
            pytest.raises(RunEnded, match="answers 401"),
        ):
            acquire_task(api, SERVER_APP)
        other = deployment.folder / "other"
        other.write_bytes(b"x" * 32)
        with (
            ApiClient(endpoint.model_copy(update={"secret": other})) as api,
            pytest.raises(RunEnded, match="answers 401"),
        ):
            acquire_task(api, SERVER_APP)
        with ApiClient(endpoint) as api:
            assert acquire_task(api, SERVER_APP) is None

    def test_nothing_but_the_gateway_listens_to_the_network(self, deployment: Any) -> None:
        """The gateway listens on the configured address, here loopback."""
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

    def test_no_key_is_on_a_command_line(self, deployment: Any) -> None:
        lines = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in deployment.processes())
        assert b"PRIVATE" not in lines
        assert b"local:" not in lines  # nor the folder of a dataset


def test_a_node_does_not_run_code_of_the_server(
    deployment: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Flower would install and import the app bundle of a run on every node; zk0 never opens it."""
    import io
    import zipfile

    from flwr.app import ConfigRecord, RecordDict

    from zk0.federation.engines.deployment import DeploymentGrid
    from zk0.federation.flower import flower_run as run

    proof, bundle = tmp_path / "proof", io.BytesIO()
    code = f"open({str(proof)!r}, 'w').write('ran')\n"
    with zipfile.ZipFile(io.BytesIO(run._app_bundle())) as ours, zipfile.ZipFile(bundle, "w") as theirs:
        names = ours.read("pyproject.toml").decode()
        app = "zk0.federation.protocol.client_app:flower_client_app"
        assert app in names
        theirs.writestr("pyproject.toml", names.replace(app, "evil.app:app"))
        theirs.writestr("evil/__init__.py", code)
        theirs.writestr(
            "evil/app.py", code + "from zk0.federation.protocol.client_app import flower_client_app as app\n"
        )
    monkeypatch.setattr(run, "_app_bundle", bundle.getvalue)
    with DeploymentGrid(deployment.server.endpoint(), tmp_path / "inbox") as grid:
        (node, *_) = grid.get_nodes()
        content = RecordDict({"config": ConfigRecord({"terms": "{}"})})
        ids = grid.push_messages([grid.make_message(content, node.node_id, "query", 60.0, "evil")])
        while not (replies := grid.pull_messages(ids)):
            pass
    refusal = str(replies[0].content["answer"]["refusal"])
    assert (
        "the terms in the server's request cannot be taken: session: Field required" in refusal
    )  # by the zk0 that is installed on the node
    assert not proof.exists()
    assert [p for n in deployment.nodes.values() for p in n.path.rglob("*evil*")] == []


def test_flowers_own_command_line_lists_the_rounds(deployment: Any) -> None:
    environment = {**os.environ, "FLWR_HOME": str(deployment.server.path / "flower")}
    command = [str(Path(sys.executable).with_name("flwr")), "list", "zk0", "--format", "json"]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert {run["status"] for run in json.loads(output)["runs"]} == {"finished:completed"}


def runs_of(deployment: Any) -> list[Any]:
    """Return all runs that the SuperLink lists, oldest first."""
    from flwr.proto.control_pb2 import ListRunsRequest, ListRunsResponse

    from zk0.federation.flower.api_client import ApiClient
    from zk0.federation.flower.private_api import ApiMethod

    list_runs = ApiMethod("/v1/control/list-runs", ListRunsRequest, ListRunsResponse)
    with ApiClient(deployment.server.endpoint()) as api:
        found = api.call(list_runs).run_dict
    return sorted(found.values(), key=lambda run: run.pending_at)


def test_personal_weights_stay_on_their_nodes(
    deployment: Any, session_of: Callable[..., Session], drive: type, tmp_path: Path
) -> None:
    """The session ends with the same digest as on this machine; no file of the server names a personal tensor."""
    from zk0.federation.open import open_federation

    training = {"personal": ["model.action_out_proj.*"], "local_steps": 2}
    found = []
    sessions = {"here": session_of(("a", "b"), training=training), "there": deployment.session(training=training)}
    for place, session in sessions.items():
        driven = drive(session, tmp_path / place, "own")
        with open_federation(session, "own", tmp_path / place) as federation:
            driven.begin(federation)
            for _ in range(2):
                driven.average(driven.train(federation).updates)
            scores = driven.evaluate(federation, save_personal=True).scores
        losses = [(one.score.policy_loss, one.personal.policy_loss) for one in scores]
        assert all(of_global != own for of_global, own in losses)
        found.append(([checkpoint.digest for checkpoint in driven.history], losses))
    assert found[0] == found[1]
    tensor = b"model.action_out_proj.weight"
    server = [tmp_path / "there", deployment.server.path]
    assert not [f for at in server for f in at.rglob("*") if f.is_file() and tensor in f.read_bytes()]
    for node in deployment.nodes.values():
        (kept,) = node.scratch.glob("sessions/*/personal-002.safetensors")
        (saved,) = node.scratch.glob("personal/*/model.safetensors")
        assert tensor in kept.read_bytes()
        assert tensor in saved.read_bytes()
        assert tensor not in (node.scratch / "sent.jsonl").read_bytes()


PLAIN_GRADIENT = {"local_steps": 1, "batch_size": 1, "weight_decay": 0, "grad_clip_norm": 1e30}
"""Settings with which one step of AdamW, with a large eps, sends the gradient of one frame."""
HOSTILE: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "a gradient of one frame, as plain as the settings allow": (
        "train",
        {"lr": 1e6, "training": PLAIN_GRADIENT | {"eps": 1e-2}},
        ("lr 1e+06", "training.eps 0.01", "training.grad_clip_norm 1e+30", "training.batch_size 1", "1 frames in the"),
    ),
    "the same, beyond them": ("train", {"training": PLAIN_GRADIENT | {"eps": 1e6}}, ("training.eps",)),
    "the same, to be masked": (
        "query.secure_mask",
        {"lr": 1e6, "training": PLAIN_GRADIENT},
        ("lr 1e+06", "training.batch_size 1"),
    ),
    "threads and steps": (
        "train",
        {"training": {"torch_threads": 100_000, "local_steps": 10**9}},
        ("training.torch_threads", "training.local_steps"),
    ),
    "threads, steps and a cache": (
        "train",
        {"training": {"torch_threads": 1000, "local_steps": 10**6, "feature_cache_gb": 1e6}},
        ("training.torch_threads 1000", "training.local_steps 1e+06", "training.feature_cache_gb 1e+06"),
    ),
    "a policy of the Hub": ("train", {"recipe": {"path": "evil-org/evil-policy"}}, ("policy 'evil-org/evil-policy'",)),
    "a policy in a folder": ("query.features", {"recipe": {"path": "/etc"}, "every_frames": 1}, ("policy 'etc'",)),
    "the statistics of another split": ("query", {"data": {"holdout_episodes": 2}}, ("holdout_episodes 2, 1 as in",)),
    "the errors of one frame": ("evaluate", {"every_frames": 10**6}, ("a score of 1 frame",)),
}
"""Type of the request, what it changes in one of an ordinary session, and parts of the node's refusal."""
ROUNDS_A_DAY = 1000


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return nested values with some of them changed."""
    parts = {key: changed(values.get(key) or {}, one) if isinstance(one, dict) else one for key, one in changes.items()}
    return values | parts


class HostileServer:
    """The operator of a server, who has its keys and asks what the session would not."""

    def __init__(self, federation: Any, driven: Any) -> None:
        (ordinary, _), values = driven.plans(), {"times": 2, "batch_size": 8, "every_frames": 1}
        self._weights, self._federation = Path(driven.history[-1].path), federation
        plan = ordinary.model_dump(mode="json")
        common = {key: plan[key] for key in ClientPlan.model_fields}
        self._plans = {
            "train": plan,
            "query.secure_mask": plan,
            "evaluate": common | values | {"round": 0},
            "query.features": common | {"round": 0, "every_frames": 1},
        }
        self._terms = plan["terms"]
        self._node = federation._requests([ordinary], None)["a"][0]

    def ask(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """Send all requests to node a, and return its refusals."""
        from flwr.app import RecordDict

        from zk0.federation.flower.flower_message import WEIGHTS_PATH

        grid, messages = self._federation._grid, []
        for number, (kind, changes) in enumerate(requests):
            if kind == "query":
                values = {"terms": json.dumps(changed(self._terms, changes))}
            else:
                plan = json.dumps(changed(self._plans[kind], changes))
                values = {"plan": plan, WEIGHTS_PATH: str(self._weights)}
            config = self._federation._config(**values)
            messages.append(grid.make_message(RecordDict({"config": config}), self._node, kind, 300.0, str(number)))
        ids, replies = grid.push_messages(messages), {}
        while len(replies) < len(ids):
            replies |= {one.metadata.reply_to_message_id: one for one in grid.pull_messages(ids)}
        grid.discard(ids)
        return [str(replies[one].content["answer"].get("refusal", "answered")) for one in ids]


@pytest.mark.slow
def test_a_hostile_servers_requests_are_refused_by_a_node_and_journaled(
    deployment: Any, drive: type, tmp_path: Path
) -> None:
    """A server with its own keys, SuperLink, gateway and SuperNode; afterwards the node answers an ordinary request."""
    from zk0.audit.journal import SentJournal
    from zk0.federation.open import open_federation

    node, session = deployment.nodes["a"], deployment.session()
    driven, state = drive(session, tmp_path, "hostile"), node.scratch / "limits_state.json"
    with open_federation(session, "hostile", tmp_path) as federation:
        driven.begin(federation)
        before, server = len(SentJournal(node.scratch / "sent.jsonl").read()), HostileServer(federation, driven)
        refusals = server.ask([(kind, changes) for kind, changes, _ in HOSTILE.values()])
        found = driven.train(federation)
        assert ([u.client for u in found.updates], found.refusals) == (["a", "b"], ())
        counted = json.loads(state.read_text())
        today = [time.time()] * ROUNDS_A_DAY  # as if it had trained in so many rounds of other sessions
        state.write_text(json.dumps(changed(counted, {"requests": {"train": today}})))
        (one_too_many,) = server.ask([("train", {})])
        state.write_text(json.dumps(counted))
    for (what, (_, _, parts)), refusal in zip(HOSTILE.items(), refusals, strict=True):
        assert [part for part in parts if part not in refusal] == [], (what, refusal)
    assert f"{ROUNDS_A_DAY + 1} requests to train in 24 hours, at most {ROUNDS_A_DAY} is allowed" in one_too_many
    journaled = SentJournal(node.scratch / "sent.jsonl").read()[before:]
    assert sorted(json.loads(one.text)["refusal"] for one in journaled if "refusal" in json.loads(one.text)) == sorted(
        [*refusals, one_too_many]
    )
    (node.path.parent / "home").mkdir()
    (node.path.parent / "home" / "client").symlink_to(node.path)
    shown = CliRunner().invoke(
        zk0bot_app, ["client", "audit"], env={"ZK0_HOME": str(node.path.parent / "home"), "COLUMNS": "400"}
    )
    assert shown.exit_code == 0, shown.output
    for part in (
        "lr 1000000.0",
        "batch_size 1,",
        "eps 0.01",
        "holdout_episodes 2",
        "every_frames 1000000",
        "evil-policy",
    ):
        assert part in shown.output, shown.output


@pytest.mark.slow
def test_a_request_that_may_not_be_downloaded_is_refused_and_journaled(
    deployment: Any, drive: type, recordings: dict[str, Path], shared_cache: Path, tmp_path: Path
) -> None:
    """The node goes on: the next request is refused by the same processes."""
    from zk0.audit.journal import SentJournal
    from zk0.federation.open import open_federation
    from zk0.settings.dataset_settings import ClientSettings

    node, session = deployment.nodes["b"], deployment.session()
    kept, driven = (node.path.parent / "limits.toml"), drive(session, tmp_path, "large")

    def restart(limits: Path) -> None:
        node.stop()
        node.install_limits(limits)
        node.start(ClientSettings(name="b", dataset=f"local:{recordings['b']}"), shared_cache, detached=False)

    (tmp_path / "small.toml").write_text(f"{kept.read_text()}max_download_gb = 1e-6\n")
    restart(tmp_path / "small.toml")
    try:
        with open_federation(session, "large", tmp_path) as federation:
            driven.begin(federation)
            agent = deployment.pid(node, "agent")
            before = len(SentJournal(node.scratch / "sent.jsonl").read())
            rounds = [driven.train(federation), driven.train(federation)]
            assert deployment.pid(node, "agent") == agent
    finally:
        restart(kept)
    reasons = [found.refusals[-1].reason for found in rounds]
    assert [[update.client for update in found.updates] for found in rounds] == [["a"], ["a"]]
    assert all("the server sends what this node's limits do not allow" in reason for reason in reasons), reasons
    journaled = [json.loads(one.text) for one in SentJournal(node.scratch / "sent.jsonl").read()[before:]]
    assert [one["refusal"] for one in journaled] == reasons
