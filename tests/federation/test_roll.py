"""Who is on the roll: each client once, from the node that it was enrolled as."""

from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from zk0.errors import FederationError
from zk0.federation.exchange import Reply
from zk0.federation.roll import NOBODY, Roll
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


def test_who_has_joined_is_no_stranger_even_under_another_number() -> None:
    roll = Roll()
    there = nodes(a=1, b=2)
    assert roll.strangers(there) == {1: "a", 2: "b"}
    assert roll.take(Reply("1", answer("a")), 1, {1: "a"}) == ""
    assert roll.strangers(there) == {2: "b"}
    assert roll.strangers(nodes(a=7, b=2)) == {2: "b"}
    assert (roll.node("a"), list(roll.members)) == (1, ["a"])
    with pytest.raises(FederationError, match="b: has not joined"):
        roll.node("b")


def test_only_those_who_are_wanted_are_asked_where_nodes_have_names() -> None:
    assert Roll().strangers(nodes(a=1, b=2, c=3), ("a", "c")) == {1: "a", 3: "c"}
    assert Roll().strangers([SimpleNamespace(node_id=1)], ("a",)) == {1: ""}


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply("2", None, "no answer within 3 s"), "no answer within 3 s"),
        (Reply("2", answer("c")), "b: answers as c; a node is called as it was enrolled"),
        (Reply("2", RecordDict({"answer": ConfigRecord({"member": "{}"})})), "an answer that is no member"),
    ],
)
def test_who_cannot_join_stays_a_stranger(reply: Reply, said: str) -> None:
    roll = Roll()
    assert str(roll.take(reply, 2, {2: "b"})).startswith(said)
    assert roll.members == {}
    assert roll.strangers(nodes(b=2)) == {2: "b"}


def test_two_nodes_of_one_name() -> None:
    roll = Roll()
    assert roll.take(Reply("1", answer("a")), 1, {1: ""}) == ""
    assert roll.take(Reply("2", answer("a")), 2, {2: ""}) == "a: two nodes answer by this name; expected one each"


def test_who_is_remembered_is_nobodys_until_it_comes_back_with_the_same_episodes() -> None:
    roll = Roll()
    roll.remember([member("a")])
    assert (roll.node("a"), list(roll.members)) == (NOBODY, ["a"])
    assert roll.strangers(nodes(a=1)) == {1: "a"}
    other = roll.take(Reply("1", answer("a", "1")), 1, {1: "a"})
    assert other == "a: not the episodes that this session began with; restore them to come back"
    assert roll.node("a") == NOBODY
    assert roll.take(Reply("1", answer("a")), 1, {1: "a"}) == ""
    assert roll.node("a") == 1
