"""How long a round waits for its nodes, on a clock that the tests move."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from zk0.federation.flower.private_api import new_message
from zk0.federation.network import agent
from zk0.federation.protocol import exchange
from zk0.federation.protocol.client_app import GPU_WAIT, OWN_TURN

TIMEOUT = 100.0


class SlowGrid:
    """Nodes that answer at given times; a node without a time never answers."""

    limits_turns = False

    def __init__(self, clock: "Clock", answers_at: Mapping[int, float]) -> None:
        self._clock, self._answers_at = clock, answers_at
        self.sent: list[Message] = []

    def get_nodes(self) -> Sequence[Any]:
        return [SimpleNamespace(node_id=node) for node in self._answers_at]

    def make_message(self, content: RecordDict, node: int, kind: str, ttl: float, group: str) -> Message:
        return new_message(1, content, node, kind, ttl, group)

    def push_messages(self, messages: Sequence[Message]) -> list[str]:
        self.sent += messages
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, ids: Sequence[str]) -> list[Message]:
        due = [m for m in self.sent if self._answers_at.get(m.metadata.dst_node_id, 1e9) <= self._clock.now]
        answer = RecordDict({"answer": ConfigRecord({"done": True})})
        return [Message(answer, reply_to=message) for message in due if message.metadata.message_id in ids]

    def discard(self, ids: Sequence[str]) -> None:
        pass


class Clock:
    """Replaces the module `time` in the code under test."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 1.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (exchange, agent):
        monkeypatch.setattr(module, "time", clock)
    return clock


def answers(clock: Clock, answers_at: Mapping[int, float], extend: bool) -> tuple[dict[str, str], SlowGrid]:
    """Return the error of each node, empty for those that answered, and the grid."""
    grid = SlowGrid(clock, answers_at)
    requests = {f"node-{node}": (node, RecordDict({"config": ConfigRecord({})})) for node in range(1, 5)}
    replies = exchange.exchange_messages(grid, requests, "train", "1", TIMEOUT, extend)
    return {reply.sender: reply.error for reply in replies}, grid


def test_nodes_that_wait_for_each_other_on_a_gpu_are_not_given_up(clock: Clock) -> None:
    found, grid = answers(clock, {1: 90, 2: 180, 3: 270, 4: 360}, extend=True)
    assert set(found.values()) == {""}
    assert {message.metadata.ttl for message in grid.sent} == {4 * TIMEOUT}


def test_a_silent_node_is_given_up_after_the_last_answer(clock: Clock) -> None:
    found, _ = answers(clock, {1: 90, 2: 180, 3: 200}, extend=True)
    assert {name for name, error in found.items() if error} == {"node-4"}
    assert found["node-4"] == "no answer within 100 s"
    assert 300 <= clock.now < 303


def test_without_a_shared_gpu_the_time_counts_from_the_request(clock: Clock) -> None:
    found, grid = answers(clock, {1: 90, 2: 180}, extend=False)
    assert {name for name, error in found.items() if not error} == {"node-1"}
    assert clock.now < 103
    assert {message.metadata.ttl for message in grid.sent} == {TIMEOUT}


def test_a_node_knows_the_limit_of_its_own_work(clock: Clock) -> None:
    _, grid = answers(clock, {}, extend=True)
    message = grid.sent[0]
    assert exchange.take_turn_limit(message) == TIMEOUT
    whole = new_message(1, exchange.limit_turn(RecordDict(), int(TIMEOUT)), 1, "train", 1e6, "1")
    assert exchange.take_turn_limit(whole) == TIMEOUT
    assert list(message.content) == ["config"]
    assert exchange.take_turn_limit(message) == 4 * TIMEOUT


@pytest.mark.parametrize("seconds", [float("nan"), -1.0, 1e9, "100", 100])
def test_a_limit_that_zk0_never_sends_does_not_count(clock: Clock, seconds: Any) -> None:
    content = RecordDict({"turn": ConfigRecord({"seconds": seconds})})
    message = new_message(1, content, 1, "train", TIMEOUT, "1")
    assert exchange.take_turn_limit(message) == TIMEOUT
    assert list(message.content) == []


class TestAgent:
    def test_a_worker_that_waits_for_a_gpu_does_not_count_as_dead(self, clock: Clock) -> None:
        grid, progress = SlowGrid(clock, {1: 20_000}), agent.ProgressClock()
        progress("a", 1, 0, 0, GPU_WAIT)
        request = grid.make_message(RecordDict({"config": ConfigRecord({})}), 1, "train", TIMEOUT, "1")
        assert not agent._handle(grid, progress, request).has_error()
        assert clock.now >= 20_000

    def test_one_without_progress_does(self, clock: Clock) -> None:
        grid, progress = SlowGrid(clock, {1: 20_000}), agent.ProgressClock()
        progress("a", 1, 0, 0, GPU_WAIT)
        progress("a", 1, 0, 0, OWN_TURN)
        content = exchange.limit_turn(RecordDict({"config": ConfigRecord({})}), TIMEOUT)
        request = grid.make_message(content, 1, "train", 50 * TIMEOUT, "1")
        with pytest.raises(agent.FederationError, match="no progress"):
            agent._handle(grid, progress, request)
        assert clock.now < 2000
