"""Nodes that a session refused do not start the next one."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flows.bot import session_trigger
from flows.bot.session_trigger import SessionTrigger
from zk0.audit.journal import ReceivedAnswer, ReceivedJournal
from zk0.federation.network.refused_nodes import RefusedNode, refused_nodes
from zk0.federation.network.server import NodeStatus, ServerFolder
from zk0.federation.network.start_rule import StartRule
from zk0.settings.loading import parse_session

DAY = 86_400.0


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def line(client: str, session: str, at: float, refusal: str = "", kind: str = "join") -> ReceivedAnswer:
    return ReceivedAnswer(at=iso(at), session=session, client=client, kind=kind, round=None, refusal=refusal)


def test_the_last_request_to_join_counts() -> None:
    journal = [
        line("evil", "s0", 10.0, "a lie"),
        line("evil", "s1", 20.0),
        line("a", "s1", 21.0, "no data"),
        line("evil", "s2", 30.0, "a lie"),
        line("a", "s2", 31.0),
        line("evil", "s3", 40.0, "a lie"),
        line("evil", "s3", 50.0, "a lie"),
        line("a", "s3", 51.0, "a late update", kind="train"),
        line("b", "s3", 52.0),
        line("b", "s3", 53.0, "its episodes are those of a"),
    ]
    found = refused_nodes(reversed(journal), 60.0)
    assert found == {"evil": RefusedNode(at=50.0, sessions=2), "b": RefusedNode(at=53.0, sessions=1)}
    assert refused_nodes(reversed(journal), 53.0 + 8 * DAY) == {}


class OnlineServer(ServerFolder):
    """A server whose nodes are online since a time."""

    since: float

    def node_statuses(self) -> tuple[NodeStatus, ...]:
        since = {"a": 1000.0, "evil": self.since}
        return tuple(
            NodeStatus(name=name, fingerprint="", status="online", since=iso(at)) for name, at in since.items()
        )


@pytest.fixture
def trigger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A watcher at a server with an honest node and one that every session refuses; its sessions end at once."""
    server = OnlineServer(tmp_path)
    server.since = 1000.0
    journal, clock, starts = ReceivedJournal(tmp_path / "accepted.jsonl"), [10_000.0], list[float]()

    def start(parameters: dict[str, Any]) -> str:
        starts.append(clock[0])
        journal.append(line("a", f"s{len(starts)}", clock[0]))
        journal.append(line("evil", f"s{len(starts)}", clock[0], "a lie"))
        return "run"

    monkeypatch.setattr(session_trigger, "_session_is_running", lambda: False)
    monkeypatch.setattr(session_trigger, "_start_session", start)
    monkeypatch.setattr(time, "time", lambda: clock[0])
    settings = {"evaluation": {"datasets": [{"dataset": "local:e"}]}, "federation": {"engine": "deployment"}}
    session = parse_session(settings, "x")
    found = SessionTrigger(server, StartRule(min_nodes=2, cooldown_seconds=3600), session, {})
    return found, server, clock, starts


def test_a_refused_node_starts_few_sessions(trigger: Any) -> None:
    """Every hour another session otherwise, which ends because one client is too few."""
    watcher, _, clock, starts = trigger
    for _ in range(24 * 4):
        decision = watcher.check_once()
        clock[0] += 900
    assert [(at - 10_000) / 3600 for at in starts] == [0, 2, 6, 14]
    assert decision == "idle: 1 of 2 nodes connected (a); not counted, because the last session refused them: evil"


def test_a_node_that_connects_anew_counts(trigger: Any) -> None:
    watcher, server, clock, starts = trigger
    watcher.check_once()
    clock[0] += 3700
    assert watcher.check_once().startswith("idle")
    server.since = clock[0]
    assert watcher.check_once().startswith("session started")
    assert len(starts) == 2
    assert json.loads((server.path / "watch.json").read_text())["known"] == ["a", "evil"]
