"""Registry of a session: each client once, from the node that was enrolled under its name."""

from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from zk0.errors import FederationError
from zk0.federation.protocol.exchange import Reply
from zk0.federation.protocol.registry import NO_NODE, Registry
from zk0.records import DatasetReport, Member, Moments, Split, Statistics


def answer(client: str, digest: str = "0") -> RecordDict:
    return RecordDict({"answer": ConfigRecord({"member": member(client, digest).model_dump_json()})})


def member(client: str, digest: str = "0") -> Member:
    one = (0.0,)
    moments = Moments(count=1, mean=one, std=one, min=one, max=one)
    return Member(
        client=client,
        dataset="local:x",
        report=DatasetReport(dataset="local:x", root=""),
        split=Split(train=(0,), held_out=()),
        train_frames=1,
        statistics=Statistics(state=moments, action=moments),
        train_digests=(digest * 64,),
        held_out_digests=(),
    )


def nodes(**named: int) -> list[Any]:
    return [SimpleNamespace(node_id=number, name=name) for name, number in named.items()]


def test_a_client_is_registered_once_even_if_its_node_gets_another_id() -> None:
    registry = Registry()
    connected = nodes(a=1, b=2)
    assert registry.unregistered_nodes(connected) == {1: "a", 2: "b"}
    assert registry.register(Reply("1", answer("a")), 1, {1: "a"}) == ""
    assert registry.unregistered_nodes(connected) == {2: "b"}
    assert registry.unregistered_nodes(nodes(a=7, b=2)) == {2: "b"}
    assert (registry.node_of("a"), list(registry.members)) == (1, ["a"])
    assert (registry.client_of(1), registry.client_of(2)) == ("a", "")
    with pytest.raises(FederationError, match="b: has not joined"):
        registry.node_of("b")


def test_only_expected_names_are_returned_where_nodes_have_names() -> None:
    assert Registry().unregistered_nodes(nodes(a=1, b=2, c=3), ("a", "c")) == {1: "a", 3: "c"}
    assert Registry().unregistered_nodes([SimpleNamespace(node_id=1)], ("a",)) == {1: ""}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply("2", None, "no answer within 3 s"), "no answer within 3 s"),
        (Reply("2", answer("c")), "b: its node joins as client c; expected the name that it was enrolled under"),
        (Reply("2", RecordDict({"answer": ConfigRecord({"member": "{}"})})), "its answer is not a member record"),
    ],
)
def test_a_node_that_cannot_join_stays_unregistered(reply: Reply, reason: str) -> None:
    registry = Registry()
    assert str(registry.register(reply, 2, {2: "b"})).startswith(reason)
    assert registry.members == {}
    assert registry.unregistered_nodes(nodes(b=2)) == {2: "b"}


def test_two_nodes_with_one_name() -> None:
    registry = Registry()
    assert registry.register(Reply("1", answer("a")), 1, {1: ""}) == ""
    assert registry.register(Reply("2", answer("a")), 2, {2: ""}) == "a: two nodes join under this name; expected one"


def test_a_restored_client_has_no_node_until_it_rejoins_with_the_same_episodes() -> None:
    registry = Registry()
    registry.restore([member("a")])
    assert (registry.node_of("a"), list(registry.members)) == (NO_NODE, ["a"])
    assert registry.unregistered_nodes(nodes(a=1)) == {1: "a"}
    other = registry.register(Reply("1", answer("a", "1")), 1, {1: "a"})
    assert other == "a: its training episodes differ from those that it joined with; restore them"
    assert registry.node_of("a") == NO_NODE
    assert registry.register(Reply("1", answer("a")), 1, {1: "a"}) == ""
    assert registry.node_of("a") == 1
