"""Uploads that stop halfway: each costs its own answer within its limits, and the answers beside it arrive."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, Metadata, RecordDict
from flwr.proto.message_pb2 import ObjectTree

from zk0.errors import FederationError, MessageLost
from zk0.federation.engines import deployment, superlink_run
from zk0.federation.engines.deployment import DeploymentGrid
from zk0.federation.flower.api_client import Endpoint
from zk0.federation.flower.flower_message import SerializedMessage, embed_weights, to_flower
from zk0.federation.flower.private_api import (
    CONFIRM_MESSAGE_RECEIVED,
    GET_NODES,
    PULL_MESSAGES,
    PULL_OBJECT,
    ApiMethod,
    ErrorCode,
    set_reply_to_message_id,
)
from zk0.federation.flower.runtime_task import FetchLimit, RuntimeTask


class Answers(RuntimeTask):
    """A task whose SuperLink holds answers, some of which are incomplete for ever."""

    def __init__(self, nodes: Sequence[str], complete: Sequence[str], weights: Path) -> None:
        super().__init__(Endpoint(address="127.0.0.1:1"), "", "flwr-serverapp", 0.0)
        self.names, self.complete, self.weights = nodes, set(complete), weights
        self.replies: dict[str, SerializedMessage] = {}
        self.missing: set[str] = set()
        self.calls: list[ApiMethod] = []
        self.run_id = 1

    def push_messages(self, messages: Sequence[SerializedMessage]) -> list[str]:
        sent = []
        for message in messages:
            node, sent_id = message.proto.metadata.dst_node_id, message.object_tree.object_id
            config = ConfigRecord({"update": str(node), "weights-path": str(self.weights)})
            metadata = Metadata(1, f"r{node}", node, 1, sent_id, "", time.time(), 60.0, "train")
            reply = to_flower(Message(content=embed_weights(RecordDict({"answer": config})), metadata=metadata))
            self.replies[sent_id] = reply
            if self.names[node - 1] not in self.complete:
                self.missing.add(reply.object_tree.object_id)
            sent.append(sent_id)
        return sent

    def call(self, method: ApiMethod, /, **fields: Any) -> Any:
        self.calls.append(method)
        if method == GET_NODES:
            nodes = [SimpleNamespace(node_id=i + 1, name=n, last_activated_at="x") for i, n in enumerate(self.names)]
            return SimpleNamespace(nodes=nodes)
        if method == PULL_MESSAGES:
            found = [self.replies[one] for one in fields["message_ids"]]
            return SimpleNamespace(
                messages_list=[one.proto for one in found], message_object_trees=[one.object_tree for one in found]
            )
        if method == PULL_OBJECT:
            wanted = fields["object_id"]
            (content,) = [r.objects[wanted].deflate() for r in self.replies.values() if wanted in r.objects][:1]
            return SimpleNamespace(
                object_found=True, object_available=wanted not in self.missing, object_content=content
            )
        return SimpleNamespace()


NAMES = ("evil-1", "a", "evil-2", "evil-3", "b", "c")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_bytes(bytes(1000))
    return tmp_path / "weights"


class SuperLink:
    """Gives every run the same task."""

    def __init__(self, task: Answers) -> None:
        self.task = task

    def open_run(self, endpoint: Endpoint) -> AbstractContextManager[Answers]:
        return nullcontext(self.task)

    def stop_run(self, endpoint: Endpoint, run_id: int) -> None: ...


@pytest.fixture
def superlink(weights: Path, monkeypatch: pytest.MonkeyPatch) -> SuperLink:
    found = SuperLink(Answers(NAMES, "abc", weights))
    monkeypatch.setattr(superlink_run, "open_run", found.open_run)
    monkeypatch.setattr(superlink_run, "stop_run", found.stop_run)
    monkeypatch.setattr(deployment, "_POLL_SECONDS", 0.05)
    return found


@pytest.fixture
def grid(superlink: SuperLink, tmp_path: Path) -> Iterator[DeploymentGrid]:
    with DeploymentGrid(Endpoint(address="127.0.0.1:1"), tmp_path / "inbox") as found:
        yield found


def test_stalled_nodes_cost_their_own_answers_only(grid: DeploymentGrid, weights: Path) -> None:
    from zk0.federation.protocol.exchange import exchange_messages

    grid.get_nodes()
    config = ConfigRecord({"plan": "{}", "weights-path": str(weights)})
    requests = {name: (number + 1, RecordDict({"config": config})) for number, name in enumerate(NAMES)}
    started, arrived = time.monotonic(), {}
    for reply in exchange_messages(grid, requests, "train", "1", 3.0):
        arrived[reply.sender] = (reply.error, time.monotonic() - started)
    assert {name for name, (error, _) in arrived.items() if not error} == {"a", "b", "c"}, arrived
    assert max(arrived[name][1] for name in "abc") < 2
    assert max(seconds for _, seconds in arrived.values()) < 6
    assert all("no answer within" in arrived[n][0] or "not complete" in arrived[n][0] for n in NAMES if "evil" in n)


def test_the_servers_reply_that_a_request_has_expired(
    grid: DeploymentGrid, superlink: SuperLink, weights: Path
) -> None:
    """It arrives after the request's time, and says what a node that does not answer at all is told to have done."""
    from zk0.federation.protocol.exchange import exchange_messages

    class Expired(Answers):
        expires = 0.0

        def call(self, method: ApiMethod, /, **fields: Any) -> Any:
            if method != PULL_MESSAGES:
                return super().call(method, **fields)
            if not fields["message_ids"] or time.time() < self.expires:
                return SimpleNamespace(messages_list=[], message_object_trees=[])
            (sent,) = fields["message_ids"]
            metadata = Metadata(1, "r", 1, 1, sent, "", time.time(), 60.0, "train")
            self.replies[sent] = to_flower(Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, "expired"), metadata=metadata))
            return super().call(method, **fields)

    superlink.task = task = Expired(("a",), "a", weights)
    task.expires = time.time() + 1.0
    grid.get_nodes()
    request = {"a": (1, RecordDict({"config": ConfigRecord({"plan": "{}", "weights-path": str(weights)})}))}
    (reply,) = exchange_messages(grid, request, "train", "1", 1.0)
    assert (reply.sender, reply.content, reply.error) == ("a", None, "no answer within 1 s")


def test_a_node_that_answers_with_errors_of_the_delivery(
    grid: DeploymentGrid, superlink: SuperLink, weights: Path, log_lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its text is one clean line, and the weights are sent to it a limited number of times."""
    from zk0.federation.protocol.exchange import exchange_messages

    sent_ids: list[str] = []

    class Failing(Answers):
        def push_messages(self, messages: Sequence[SerializedMessage]) -> list[str]:
            sent = super().push_messages(messages)
            for sent_id in sent:
                metadata = Metadata(1, "r", 1, 1, sent_id, "", time.time(), 60.0, "train")
                error = Error(ErrorCode.NODE_UNAVAILABLE, "gone\n2026-01-01 INFO \x1b[31mforged" + "x" * 10**6)
                self.replies[sent_id] = to_flower(Message(error, metadata=metadata))
            sent_ids.extend(sent)
            return sent

    monkeypatch.setattr(deployment, "_CHECK_NODES_SECONDS", 0.0)
    superlink.task = Failing(("a",), "a", weights)
    grid.get_nodes()
    request = {"a": (1, RecordDict({"config": ConfigRecord({"plan": "{}", "weights-path": str(weights)})}))}
    (reply,) = exchange_messages(grid, request, "train", "1", 60.0)
    assert (reply.content, reply.error[:31]) == (None, "gone 2026-01-01 INFO (31mforged")
    assert len(sent_ids) == superlink_run.MAX_DELIVERIES
    assert len(log_lines) == superlink_run.MAX_DELIVERIES - 1
    assert all(line[:-1].isprintable() and len(line) < 3000 for line in log_lines)


def test_a_node_that_restarts_after_every_delivery(
    grid: DeploymentGrid, superlink: SuperLink, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zk0.federation.protocol.exchange import exchange_messages

    sent_ids: list[str] = []

    class Restarting(Answers):
        def push_messages(self, messages: Sequence[SerializedMessage]) -> list[str]:
            sent = super().push_messages(messages)
            sent_ids.extend(sent)
            return sent

        def call(self, method: ApiMethod, /, **fields: Any) -> Any:
            if method == PULL_MESSAGES:
                return SimpleNamespace(messages_list=[], message_object_trees=[])
            found = super().call(method, **fields)
            for node in found.nodes if method == GET_NODES else ():
                node.last_activated_at = str(len(self.calls))
            return found

    monkeypatch.setattr(deployment, "_CHECK_NODES_SECONDS", 0.0)
    superlink.task = Restarting(("a",), "a", weights)
    grid.get_nodes()
    request = {"a": (1, RecordDict({"config": ConfigRecord({"plan": "{}", "weights-path": str(weights)})}))}
    (reply,) = exchange_messages(grid, request, "train", "1", 60.0)
    assert reply.error == "its node has restarted again, after 19 deliveries that were lost"
    assert len(sent_ids) == superlink_run.MAX_DELIVERIES == 20


def fetched(answers: Answers, limit: FetchLimit, target: Path) -> Message:
    request = Message(
        content=RecordDict({"config": ConfigRecord({})}),
        metadata=Metadata(1, "m", 1, 1, "", "", time.time(), 60.0, "train"),
    )
    set_reply_to_message_id(request, "")
    (sent,) = answers.push_messages([to_flower(request)])
    return answers.fetch_message(answers.replies[sent].object_tree, target, limit)


def test_limits_of_a_download(weights: Path, tmp_path: Path) -> None:
    target, now = tmp_path / "arrived", time.monotonic
    fetched(Answers(("a",), "a", weights), FetchLimit(now() + 9, 9, 1000), target)
    assert target.read_bytes() == bytes(1000)
    target.unlink()
    with pytest.raises(FederationError, match="expected at most 999"):
        fetched(Answers(("a",), "a", weights), FetchLimit(now() + 9, 9, 999), target)
    with pytest.raises(MessageLost, match="its upload stopped: no part of it arrived"):
        fetched(Answers(("a",), "", weights), FetchLimit(now() + 9, 0.1, 1000), target)
    with pytest.raises(FederationError, match="not complete in time"):
        fetched(Answers(("a",), "", weights), FetchLimit(now() + 0.1, 9, 1000), target)
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(FederationError, match="not complete in time"):
        fetched(Answers(("a",), "", weights), FetchLimit(now() + 9, 9, 1000, stopped), target)
    assert not target.exists()


@pytest.mark.parametrize(("children", "most"), [(33, 1000), (40, 10_000_000), (100_000, 0)])
def test_a_message_of_too_many_objects_is_deleted_before_any_is_fetched(
    children: int, most: int, weights: Path, tmp_path: Path
) -> None:
    """The server would take any number of objects of it, of 26 MB each."""
    answers = Answers(("a",), "a", weights)
    tree = ObjectTree(object_id="0" * 64, children=[ObjectTree(object_id=f"{n:064x}") for n in range(children)])
    with pytest.raises(FederationError, match=f"more objects than weights of {most} bytes"):
        answers.fetch_message(tree, tmp_path / "arrived", FetchLimit(time.monotonic() + 9, 9, most))
    assert answers.calls == [CONFIRM_MESSAGE_RECEIVED]


def test_a_refused_message_is_deleted_and_a_lost_one_is_not(weights: Path, tmp_path: Path) -> None:
    refused, lost, now = Answers(("a",), "a", weights), Answers(("a",), "", weights), time.monotonic
    with pytest.raises(FederationError, match="expected at most 999"):
        fetched(refused, FetchLimit(now() + 9, 9, 999), tmp_path / "arrived")
    assert refused.calls[-1] == CONFIRM_MESSAGE_RECEIVED
    with pytest.raises(MessageLost):
        fetched(lost, FetchLimit(now() + 9, 0.1, 1000), tmp_path / "arrived")
    assert CONFIRM_MESSAGE_RECEIVED not in lost.calls
