"""A round of the full policy's size goes through in pieces: nobody on the way holds it in memory."""

import hashlib
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

MEGABYTES = int(os.environ.get("ZK0_MB", "400"))
PLENTY = 350
"""Megabytes that pieces of five need on their way, in several threads (303 at 800 MB each way); a model would show."""


class Echo:
    """In place of a node's worker: answers the very weights that came."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []

    def get_nodes(self) -> list[Any]:
        return [SimpleNamespace(node_id=1)]

    def make_message(self, content: Any, node: int, kind: str, ttl: float, group: str) -> Any:
        from flwr.app import Message, Metadata

        return Message(content=content, metadata=Metadata(1, "m", 1, node, "", group, time.time(), ttl, kind))

    def push_messages(self, messages: list[Any]) -> list[str]:
        self.waiting = messages
        return ["m"]

    def pull_messages(self, ids: list[str]) -> list[Any]:
        from flwr.app import ConfigRecord, Message, RecordDict

        asked = Path(str(self.waiting[0].content["config"]["weights-path"]))
        answer = asked.with_name("answer")
        os.link(asked, answer)
        return [Message(RecordDict({"answer": ConfigRecord({"weights-path": str(answer)})}), reply_to=self.waiting[0])]


def megabytes(pid: int, what: str = "VmHWM") -> float:
    """Most memory that a process ever had resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(what))


def sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_stays_flat_with_400_megabytes_each_way(deploy: Callable[..., Any], tmp_path: Path) -> None:
    from flwr.app import ConfigRecord, RecordDict

    from zk0.federation.agent import AgentSettings, Progress, serve
    from zk0.federation.deployed import DeployedGrid
    from zk0.federation.kept import Kept

    weights = tmp_path / "weights"
    with weights.open("wb") as file:
        for _ in range(MEGABYTES):
            file.write(os.urandom(1_000_000))
    deployment = deploy(tmp_path, ("a",))
    over = threading.Event()
    try:
        node = deployment.nodes["a"]
        node.stop()  # its agent gives way to ours
        settings = AgentSettings.model_validate_json((node.path / "agent.json").read_text())
        processes = (node.path / "processes.json").read_text()
        node.kept.write([Kept.model_validate(one) for one in json.loads(processes) if one["name"] == "supernode"])
        node.kept.start(outlives=False)
        agent = threading.Thread(target=serve, args=(settings, Echo(), Progress(), over.is_set))
        agent.start()
        door = deployment.pid(deployment.server, "gateway")
        with DeployedGrid(deployment.server.endpoint(), tmp_path / "inbox") as grid:
            while not (nodes := grid.get_nodes()):
                time.sleep(0.2)
            before, ours = megabytes(door), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
            began = time.monotonic()
            content = RecordDict({"config": ConfigRecord({"plan": "{}", "weights-path": str(weights)})})
            ids = grid.push_messages([grid.make_message(content, nodes[0].node_id, "train", 900.0, "1")])
            while not (replies := grid.pull_messages(ids)):
                assert time.monotonic() < began + 900
            arrived = Path(str(replies[0].content["answer"]["weights-path"]))
            seconds = time.monotonic() - began
            assert sha(arrived) == sha(weights)
        grown = {"gateway": megabytes(door) - before}
        grown["session and agent"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000 - ours
        server = deployment.server
        kept = [(server, "superlink"), (server, "gateway"), (node, "supernode")]
        peaks = {name: megabytes(deployment.pid(where, name)) for where, name in kept}
        sys.stderr.write(f"{MEGABYTES} MB each way: {seconds:.1f} s; grown by {grown}; peaks {peaks}\n")
        assert grown["gateway"] < 50
        assert grown["session and agent"] < PLENTY
    finally:
        over.set()
        deployment.stop()
