"""Hostile nodes with valid kits at a real SuperLink behind a real gateway: each costs its own answer only."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import zstandard
from collecting import FEDERATIONS, collect_updates
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from hostile_fleet import HostileFleet, Work, refusal
from hostile_node import HostileNode

from zk0.audit.journal import ReceivedJournal
from zk0.federation.engines.deployment import DeploymentGrid
from zk0.federation.flower.flower_message import WEIGHTS_PATH
from zk0.federation.flower.private_api import ArrayChunk, set_array_chunks
from zk0.federation.network.flower_commands import free_port
from zk0.federation.network.server import ServerFolder, ServerSettings
from zk0.federation.protocol.buffered_federation import BufferedFederation
from zk0.federation.protocol.collect import Federation
from zk0.federation.protocol.received_log import ReceivedLog
from zk0.records import ClientMetrics, PolicyRecipe
from zk0.settings.dataset_settings import ContractSettings, DataSettings, SimulatorSettings
from zk0.settings.plans import RoundPlan, SessionTerms
from zk0.settings.training_settings import LocalTrainingSettings, SchedulerSettings
from zk0.weights.tensor_spec import TensorSpec, encode_header
from zk0.weights.writer import save_weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

JOIN_SECONDS, LEAST_ROUND_SECONDS = 120.0, 12.0
FRAMES = 90
METRICS = ClientMetrics.model_validate(dict.fromkeys(ClientMetrics.model_fields, 1)).model_dump()
MOMENTS = {"count": FRAMES, "mean": [1.0] * 6, "std": [20.0] * 6, "min": [-90.0] * 6, "max": [90.0] * 6}
TERMS = SessionTerms(
    session="s", seed=1, contract=ContractSettings(), data=DataSettings(), simulator=SimulatorSettings()
)


def member(name: str, **changes: Any) -> RecordDict:
    """An answer to the session's terms, with training episodes that no other node has."""
    values = {
        "client": name,
        "dataset": "local:x",
        "report": {"dataset": "local:x", "root": "", "fps": 10.0, "episodes": 4, "frames": 120},
        "split": {"train": [0, 1, 2], "held_out": [3]},
        "train_frames": FRAMES,
        "statistics": {"state": MOMENTS, "action": MOMENTS},
        "train_digests": [f"{name.encode().hex():>063}{n}" for n in range(3)],
        "held_out_digests": [f"{name.encode().hex():>063}9"],
    }
    return RecordDict({"answer": ConfigRecord({"member": json.dumps(values | changes)})})


def update(node: HostileNode, request: Message, **changes: Any) -> RecordDict:
    """An honest answer to a plan, as far as no field is changed."""
    plan = json.loads(str(request.content["config"]["plan"]))
    weights = {"w": np.full((64, 64), 1e-3, np.float32)}
    digest, size = save_weights(node.folder / "update.safetensors", weights)
    values = {
        "client": node.name, "round": plan["round"], "global_digest": plan["global_digest"], "path": "/etc/passwd",
        "digest": digest, "bytes": size, "examples": FRAMES, "dataset": "local:x", "metrics": METRICS,
        "lora": None, "wire": plan["wire"], "has_control_variates": False,
    }  # fmt: skip
    text = json.dumps(values | changes)
    return RecordDict({"answer": ConfigRecord({"update": text, WEIGHTS_PATH: str(node.folder / "update.safetensors")})})


def moments(**changes: Any) -> dict[str, Any]:
    """The statistics of a joining answer, with false moments of the states."""
    return {"state": MOMENTS | changes, "action": MOMENTS}


def chunk_bomb(node: HostileNode, request: Message) -> None:
    """One piece of a megabyte, listed 1000 times."""
    chunk = ArrayChunk(memoryview(bytes(1_000_000)))
    array = Array("uint8", (1,), "zk0.safetensors", b"")
    set_array_chunks(array, [chunk] * 1000)
    record = ArrayRecord()
    record["file"] = array
    answer = {"update": update(node, request)["answer"]["update"]}
    node.answer(request, RecordDict({"weights": record, "answer": ConfigRecord(answer)}))


def flood(node: HostileNode, request: Message) -> None:
    """A thousand pieces, of which the first ones alone would be more than the weights."""
    array = Array("uint8", (1000,), "zk0.safetensors", b"")
    set_array_chunks(array, [ArrayChunk(memoryview(n.to_bytes(4) * 10_000)) for n in range(1000)])
    record = ArrayRecord()
    record["file"] = array
    answer = {"update": update(node, request)["answer"]["update"]}
    try:
        node.answer(request, RecordDict({"weights": record, "answer": ConfigRecord(answer)}))
    except httpx.HTTPStatusError as e:  # the session has ended, and the node still sends pieces
        if e.response.status_code != httpx.codes.FORBIDDEN:
            raise


class Nested(ArrayRecord):
    """A record whose list of arrays is nested deeper than a parser recurses."""

    def deflate(self) -> bytes:
        body = b"[" * 100_000
        return f"ArrayRecord  {len(body)}".encode() + b"\0" + body


def impersonate(node: HostileNode, request: Message) -> None:
    """An answer in the name of another node, whose id and request an attacker would have to know."""
    try:
        node.answer(request, update(node, request), sender=request.metadata.dst_node_id ^ 1)
    except httpx.HTTPStatusError as e:
        node.answer(request, refusal(f"status {e.response.status_code}"))


def nested(node: HostileNode, request: Message) -> None:
    answer = {"update": update(node, request)["answer"]["update"]}
    node.answer(request, RecordDict({"weights": Nested(), "answer": ConfigRecord(answer)}))


def compressed_bomb(node: HostileNode, request: Message) -> None:
    """A zstd file of 200 MB of zeros, although the plan asks for no compression."""
    content = update(node, request, wire={"upload": "fp32", "compressed": True, "download": "fp32"})
    specs = {"w": TensorSpec("float32", (50, 1_000_000))}
    with zstandard.open(node.folder / "update.safetensors", "wb") as file:
        file.write(encode_header(["w"], specs))
        for _ in range(200):
            file.write(bytes(1_000_000))
    node.answer(request, content)


HOSTILE: dict[str, tuple[Callable[[HostileNode, Message], None], str]] = {
    "stalls": (lambda node, asked: node.answer(asked, update(node, asked), objects=2), "no answer within|not complete"),
    "stalls-too": (lambda node, asked: node.answer(asked, update(node, asked), 1), "no answer within|not complete"),
    "chunks": (chunk_bomb, "does not understand .*(chunks of more|an empty one)"),
    "floods": (flood, "a message of more objects than weights of"),
    "nests": (nested, "does not understand .*RecursionError"),
    "compresses": (compressed_bomb, "its wire format is"),
    "claims": (lambda n, asked: n.answer(asked, update(n, asked, examples=10**12)), "is not an update .*examples"),
    "more-frames": (lambda n, asked: n.answer(asked, update(n, asked, examples=91)), "expected the 90 training frames"),
    "impersonates": (impersonate, "^status 403$"),
    "marks-up": (lambda n, asked: n.answer(asked, refusal("[/x]\x1b[2J\r\nINFO forged")), r"\(/x\) \(2J INFO forged"),
}
"""Name of the node, how it answers a plan, and why it is refused."""
HONEST = ("a", "b")
LIARS: dict[str, tuple[Callable[[str], RecordDict], str]] = {
    "ruins": (lambda name: member(name, statistics=moments(std=[1e200] * 6)), "no data has the moments"),
    "widens": (lambda name: member(name, statistics=moments(std=[1.0])), "moments of"),
    "counts": (lambda name: member(name, statistics=moments(count=10**400)), "is not a member record"),
    "shouts": (lambda name: member(name, dataset="x" * 1_000_000), "is not a member record"),
    "another": (lambda name: member("a"), "joins as client a; expected the name that it was enrolled under"),
}
"""Name of the node, its joining answer, and why it is refused."""


def answer_with(joining: Mapping[str, RecordDict]) -> Work:
    """Return how nodes work: those that are named join with an answer of their own, others honestly."""

    def work(node: HostileNode, request: Message) -> None:
        if "terms" in request.content["config"]:
            node.answer(request, joining.get(node.name) or member(node.name))
        elif node.name in HOSTILE:
            HOSTILE[node.name][0](node, request)
        else:
            node.answer(request, update(node, request))

    return work


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerFolder]:
    found = ServerFolder(tmp_path / "server")
    found.init(ServerSettings(hosts=("127.0.0.1",), port=free_port(), bind="127.0.0.1", in_memory=True))
    yield found
    found.stop()


def megabytes(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6 if folder.is_dir() else 0.0


class Arrivals:
    """When each client's answer was accepted or refused."""

    def __init__(self, watched: Path) -> None:
        self.began, self.at, self.most, self._watched = time.monotonic(), dict[str, float](), 0.0, watched

    def on_request(self, client: str) -> None: ...
    def on_reused(self, update: Any) -> None: ...
    def on_result(self, found: Any) -> None:
        self.at[found.client] = time.monotonic() - self.began
        self.most = max(self.most, megabytes(self._watched))


def set_timeout(federation: Federation, seconds: float) -> None:
    federation._timeout = seconds
    if isinstance(federation, BufferedFederation):
        federation._open_requests._timeout = seconds


@pytest.mark.parametrize("mode", ["synchronous", "buffered"])
def test_each_hostile_node_costs_its_own_answer(server: ServerFolder, tmp_path: Path, mode: str) -> None:
    nodes = HostileFleet(server, tmp_path / "nodes", (*HONEST, *HOSTILE), answer_with({}))
    server.start(detached=False)
    start = tmp_path / "global.safetensors"
    digest, _ = save_weights(start, {"w": np.zeros((64, 64), np.float32)})
    names = tuple(sorted((*HONEST, *HOSTILE)))
    journal = server.path / "accepted.jsonl"
    inbox = tmp_path / "session" / "inbox"
    with nodes.running(500), DeploymentGrid(server.endpoint(), inbox, names) as grid:
        federation = FEDERATIONS[mode](grid, names, JOIN_SECONDS, log=ReceivedLog(journal, "s"))
        began = time.monotonic()
        members = federation.join(TERMS)
        # a round has three times the messages of joining, and this machine may be busy
        round_seconds = max(LEAST_ROUND_SECONDS, 5 * (time.monotonic() - began))
        set_timeout(federation, round_seconds)
        assert sorted(m.client for m in members) == list(names), nodes.failures
        common = {
            "terms": TERMS, "round": 1, "recipe": PolicyRecipe(path="tiny", cameras=("x",), joints=6, seed=1),
            "global_digest": digest, "statistics": None, "training": LocalTrainingSettings(local_steps=1),
        }  # fmt: skip
        plans = [RoundPlan(client=n, lr=1.0, mu=0.0, scheduler=SchedulerSettings(), **common) for n in names]
        arrivals = Arrivals(tmp_path / "session")
        found, _ = collect_updates(federation, plans, start, tmp_path / "session" / "updates", arrivals)
    reasons = {one.client: one.reason for one in found.refusals}
    assert [u.client for u in found.updates] == list(HONEST), reasons
    assert sorted(reasons) == sorted(HOSTILE)
    for name, (_, pattern) in HOSTILE.items():
        assert re.search(pattern, reasons[name]), (name, reasons[name])
    assert max(arrivals.at[name] for name in HONEST) < round_seconds, arrivals.at
    assert max(arrivals.at.values()) < round_seconds + 20, arrivals.at
    assert arrivals.most < 5  # the bombs would be 1000 and 200 MB
    received = ReceivedJournal(journal).read()
    assert {one.client for one in received if one.refusal} == set(HOSTILE)
    assert not any(ord(c) < 32 for one in received for c in one.refusal)


def test_a_node_that_lies_when_it_joins_costs_itself_only(server: ServerFolder, tmp_path: Path) -> None:
    names = tuple(sorted((*HONEST, *LIARS)))
    lies = {name: lie(name) for name, (lie, _) in LIARS.items()}
    nodes = HostileFleet(server, tmp_path / "nodes", names, answer_with(lies))
    server.start(detached=False)
    journal = server.path / "accepted.jsonl"
    inbox = tmp_path / "session" / "inbox"
    with nodes.running(300), DeploymentGrid(server.endpoint(), inbox, names) as grid:
        members = Federation(grid, names, JOIN_SECONDS, min_clients=2, log=ReceivedLog(journal, "s")).join(TERMS)
    assert [m.client for m in members] == list(HONEST)
    reasons = {one.client: one.refusal for one in ReceivedJournal(journal).read() if one.refusal}
    assert sorted(reasons) == sorted(LIARS)
    for name, (_, pattern) in LIARS.items():
        assert re.search(pattern, reasons[name]), (name, reasons[name])
