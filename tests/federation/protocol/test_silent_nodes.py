"""Nodes that answer nothing when they are requested to join: rounds wait for them less and less often."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from zk0.errors import FederationError
from zk0.federation.flower.private_api import new_message
from zk0.federation.protocol.membership import Membership, SilentJoinListener
from zk0.settings.dataset_settings import ContractSettings, DataSettings, SimulatorSettings
from zk0.settings.plans import SessionTerms

TERMS = SessionTerms(
    session="s", seed=1, contract=ContractSettings(), data=DataSettings(), simulator=SimulatorSettings()
)


class QuietGrid:
    """An engine whose nodes are connected and never answer."""

    limits_turns = False

    def __init__(self, *names: str) -> None:
        self.names = list(names)

    def get_nodes(self) -> list[Any]:
        return [SimpleNamespace(node_id=number, name=name) for number, name in enumerate(self.names, start=1)]

    def make_message(
        self, content: RecordDict, dst_node_id: int, message_type: str, ttl: float, group_id: str
    ) -> Message:
        return new_message(1, content, dst_node_id, message_type, ttl, group_id)

    def push_messages(self, messages: Sequence[Message]) -> list[str]:
        return [str(number) for number, _ in enumerate(messages)]

    def pull_messages(self, ids: Sequence[str]) -> list[Message]:
        return []

    def discard(self, ids: Sequence[str]) -> None: ...


class Requested(SilentJoinListener):
    """Stores which nodes are requested to join, for each time."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def on_join_requests(self, names: Mapping[int, str]) -> None:
        self.names.append("".join(names.values()))


def test_a_silent_node_is_requested_after_twice_as_many_rounds_each_time() -> None:
    grid, requested = QuietGrid("a"), Requested()
    membership = Membership(grid, (), 0.01)
    for number in range(1, 17):
        if number == 6:
            grid.names.append("b")  # it connects later, and is requested at once
        assert membership.join_new_nodes(TERMS, 0.01, requested) == ()
    expected = ["a", "a", "", "a", "", "b", "b", "a", "b", "", "", "", "b", "", "", "a"]
    # a: calls 1, 2, 4, 8, 16; b: calls 6, 7, 9, 13
    assert requested.names == expected


def test_fewer_than_the_minimum_answer() -> None:
    membership = Membership(QuietGrid("a", "b", "c"), ("a", "b", "c", "away"), 0.01, min_clients=2, may_lack=True)
    with pytest.raises(FederationError) as caught:
        membership.join(TERMS)
    assert str(caught.value).splitlines() == [
        "4 of 4 clients cannot take part, 2 must:",
        "  a: no answer within 0.01 s",
        "  away: its node is not connected",
        "  b: no answer within 0.01 s",
        "  c: no answer within 0.01 s",
    ]
