"""A message of the full policy's size is sent in chunks: no process on the way holds it in memory."""

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
MAX_GROWTH = 150
"""Megabytes that chunks of 5 MB need in several threads (38 at 400 MB each way); a whole model would need more."""


class Echo:
    """In place of a node's worker: answers with the weights that it received."""

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

        received = Path(str(self.waiting[0].content["config"]["weights-path"]))
        answer = received.with_name("answer")
        os.link(received, answer)
        return [Message(RecordDict({"answer": ConfigRecord({"weights-path": str(answer)})}), reply_to=self.waiting[0])]


def megabytes(pid: int, what: str = "VmHWM") -> float:
    """Peak resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(what))


def sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_stays_flat_with_400_megabytes_each_way(deploy: Callable[..., Any], tmp_path: Path) -> None:
    from flwr.app import ConfigRecord, RecordDict

    from zk0.federation.engines.deployment import DeploymentGrid
    from zk0.federation.network.agent import AgentSettings, ProgressClock, answer_tasks
    from zk0.federation.network.supervised_folder import ProcessSpec

    weights = tmp_path / "weights"
    with weights.open("wb") as file:
        for _ in range(MEGABYTES):
            file.write(os.urandom(1_000_000))
    deployment = deploy(tmp_path, ("a",))
    stopping = threading.Event()
    try:
        node = deployment.nodes["a"]
        node.stop()  # this test is its agent
        settings = AgentSettings.model_validate_json((node.path / "agent.json").read_text())
        processes = (node.path / "processes.json").read_text()
        node.supervised.write_processes(
            [ProcessSpec.model_validate(one) for one in json.loads(processes) if one["name"] == "supernode"]
        )
        node.supervised.start(detached=False)
        agent = threading.Thread(target=answer_tasks, args=(settings, Echo(), ProgressClock(), stopping.is_set))
        agent.start()
        gateway = deployment.pid(deployment.server, "gateway")
        with DeploymentGrid(deployment.server.endpoint(), tmp_path / "inbox") as grid:
            while not (nodes := grid.get_nodes()):
                time.sleep(0.2)
            before, ours = megabytes(gateway), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
            began = time.monotonic()
            content = RecordDict({"config": ConfigRecord({"plan": "{}", "weights-path": str(weights)})})
            ids = grid.push_messages([grid.make_message(content, nodes[0].node_id, "train", 900.0, "1")])
            while not (replies := grid.pull_messages(ids)):
                assert time.monotonic() < began + 900
            arrived = Path(str(replies[0].content["answer"]["weights-path"]))
            seconds = time.monotonic() - began
            assert sha(arrived) == sha(weights)
        grown = {"gateway": megabytes(gateway) - before}
        grown["session and agent"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000 - ours
        server = deployment.server
        processes = [(server, "superlink"), (server, "gateway"), (node, "supernode")]
        peaks = {name: megabytes(deployment.pid(where, name)) for where, name in processes}
        sys.stderr.write(f"{MEGABYTES} MB each way: {seconds:.1f} s; grown by {grown}; peaks {peaks}\n")
        assert grown["gateway"] < 50
        assert grown["session and agent"] < MAX_GROWTH
    finally:
        stopping.set()
        deployment.stop()
