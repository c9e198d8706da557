"""Sessions that name their nodes, over a real SuperLink: who is away, silent or refuses is left out by name."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from hostile_fleet import HostileFleet, refusal
from hostile_node import HostileNode
from loguru import logger
from waiting import wait_until

from zk0.audit.journal import ReceivedJournal
from zk0.errors import FederationError, TransientError
from zk0.federation.open import open_federation
from zk0.federation.protocol.membership import SilentJoinListener
from zk0.settings.plans import session_terms

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

JOIN_SECONDS, ABSENCE_SECONDS = 60, 4
ESCAPES = "[/x]\x1b[2J\r\n2026-01-01 | INFO | forged"
ANSWERS = {
    "refuses": refusal("no session today"),
    "shouts": refusal(ESCAPES),
    "passes": refusal("the Hub does not respond", may_pass=True),
}
SILENT = ("silent", "mute")


def answer(node: HostileNode, request: Message) -> None:
    if node.name not in SILENT:
        node.answer(request, ANSWERS[node.name])


@pytest.fixture(scope="module")
def deployment(deploy: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two honest SuperNodes, hostile nodes, and an enrolled one that never connects."""
    folder = tmp_path_factory.mktemp("named")
    started = deploy(folder)
    try:
        started.server.enroll("away")
        fleet = HostileFleet(started.server, folder / "hostile", (*SILENT, *ANSWERS), answer)
        with fleet.running(580):
            wait_until(lambda: {n.name for n in started.server.node_statuses() if n.status == "online"} >= {"a", "b"})
            yield started
    finally:
        started.stop()


@pytest.fixture
def open_named(deployment: Any, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that opens a session of named nodes."""

    def opened(*nodes: str, **settings: Any) -> Any:
        rules = {"nodes": list(nodes), "round_timeout_seconds": JOIN_SECONDS, "absence_seconds": ABSENCE_SECONDS}
        session = deployment.session(federation=rules | settings)
        return open_federation(session, tmp_path.name, tmp_path / "session"), session

    return opened


class Requested(SilentJoinListener):
    """Stores the names of the nodes that are requested to join, for each time."""

    def __init__(self) -> None:
        self.names: list[set[str]] = []

    def on_join_requests(self, names: Mapping[int, str]) -> None:
        self.names.append(set(names.values()))


def refused(deployment: Any, name: str) -> dict[str, str]:
    """Return why clients were refused in a session, from the server's journal."""
    found = ReceivedJournal(deployment.server.path / "accepted.jsonl").read()
    return {one.client: one.refusal for one in found if one.session == name and one.refusal}


def test_a_session_begins_with_the_minimum_and_goes_on_when_it_resumes(
    deployment: Any, open_named: Callable[..., Any], drive: type, tmp_path: Path
) -> None:
    lines: list[str] = []
    handler = logger.add(lambda line: lines.append(str(line)), level="WARNING", format="{message}")
    opening, session = open_named("away", "b", "silent", "refuses", "mute", "a", "shouts")
    driven = drive(session, tmp_path / "session", tmp_path.name)
    with opening as federation:
        driven.begin(federation, ABSENCE_SECONDS)
        assert [m.client for m in driven.members] == ["b", "a"]
        assert [u.client for u in driven.train(federation).updates] == ["a", "b"]
    logger.remove(handler)
    expected = {
        "away": "its node is not connected",
        "silent": f"no answer within {JOIN_SECONDS} s",
        "mute": f"no answer within {JOIN_SECONDS} s",
        "refuses": "no session today",
        "shouts": "(/x) (2J 2026-01-01 | INFO | forged",
    }
    assert refused(deployment, tmp_path.name) == expected
    assert {f"does not take part: {name}: {reason}\n" for name, reason in expected.items()} <= set(lines)

    setup = {"members": [member.model_dump(mode="json") for member in driven.members]}
    (tmp_path / "session" / "session_setup.json").write_text(json.dumps(setup))
    with open_named("away", "b", "silent", "refuses", "mute", "a", "shouts")[0] as federation:
        assert federation.join(session_terms(session, tmp_path.name), driven.members, ABSENCE_SECONDS) == driven.members
        assert [u.client for u in driven.train(federation).updates] == ["a", "b"]
        asked = Requested()
        for _ in range(4):
            again = federation.join_new_nodes(session_terms(session, tmp_path.name), 10, asked)
            assert [m.client for m in again] == ["a", "b"]
    assert [names - {"refuses", "shouts"} for names in asked.names] == [{*SILENT}, {*SILENT}, set(), {*SILENT}]
    assert all({"refuses", "shouts"} <= names for names in asked.names)


def test_fewer_than_the_minimum_are_one_error(open_named: Callable[..., Any], deployment: Any, tmp_path: Path) -> None:
    opening, session = open_named("a", "b", "refuses", "away", min_nodes=3)
    with opening as federation, pytest.raises(FederationError) as caught:
        federation.join(session_terms(session, tmp_path.name), wait_seconds=ABSENCE_SECONDS)
    assert str(caught.value).splitlines() == [
        "2 of 4 clients cannot take part, 3 must:",
        "  away: its node is not connected",
        "  refuses: no session today",
    ]


def test_all_refuse(open_named: Callable[..., Any], tmp_path: Path) -> None:
    opening, session = open_named("refuses", "shouts")
    with opening as federation, pytest.raises(FederationError) as caught:
        federation.join(session_terms(session, tmp_path.name))
    assert str(caught.value).splitlines() == [
        "2 of 2 clients cannot take part, 2 must:",
        "  refuses: no session today",
        "  shouts: (/x) (2J 2026-01-01 | INFO | forged",
    ]


def test_none_is_connected(open_named: Callable[..., Any], tmp_path: Path) -> None:
    opening, session = open_named("away", "unknown", round_timeout_seconds=2)
    with opening as federation, pytest.raises(FederationError, match=r"^0 nodes after 2 s, expected at least 2$"):
        federation.join(session_terms(session, tmp_path.name))


def test_a_reason_that_may_pass_is_a_reason_to_ask_once_more(open_named: Callable[..., Any], tmp_path: Path) -> None:
    opening, session = open_named("passes", "a", "b")
    with opening as federation:
        terms = session_terms(session, tmp_path.name)
        with pytest.raises(TransientError, match=r"^1 clients cannot join now: passes: the Hub does not respond$"):
            federation.join(terms)
        assert [member.client for member in federation.join(terms)] == ["a", "b"]
