"""What the session knows of Ray's actors; no Ray is started."""

import queue
import time
from collections.abc import Sequence
from multiprocessing.connection import Client
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

from zk0.errors import FederationError
from zk0.federation.engines import ray
from zk0.federation.engines.ray import RayGrid, WorkerClientApp
from zk0.federation.flower.private_api import new_message, set_message_id


class Undelivered:
    """Flower's grid, whose messages no actor answers."""

    def push_messages(self, messages: Sequence[Message]) -> list[str]:
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, ids: Sequence[str]) -> list[Message]:
        return []


@pytest.fixture
def actors():
    with ray._ActorConnections(None) as found:
        yield found
        found.close()


def message(number: int = 0) -> Message:
    made = new_message(1, RecordDict(), 1, "train", 60.0, "1")
    set_message_id(made, f"message-{number}")
    return made


def test_a_round_does_not_wait_for_actors_that_are_gone(actors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "_START_SECONDS", 0.5)
    grid = RayGrid(Undelivered(), queue.Queue(), actors)
    time.sleep(0.6)
    ids = grid.push_messages([message()])
    assert grid.pull_messages(ids) == []  # from the message on it has time to start
    with Client(actors.address.address) as actor:
        assert actor.recv() == 0
        time.sleep(0.8)
        assert grid.pull_messages(ids) == []
    time.sleep(0.2)
    assert grid.pull_messages(ids) == []  # Ray starts it again
    time.sleep(0.6)
    with pytest.raises(FederationError, match="no actor of Ray has been there"):
        grid.pull_messages(ids)
    grid.discard(ids)
    assert grid.pull_messages([]) == []


def test_a_simulation_that_has_ended_stays_ended(actors: Any) -> None:
    ended: queue.Queue[BaseException | None] = queue.Queue()
    grid = RayGrid(Undelivered(), ended, actors)
    ended.put(RuntimeError("crashed"))
    for _ in range(2):
        with pytest.raises(FederationError, match="the Ray simulation has ended: crashed"):
            grid.pull_messages([])


def test_no_actor_takes_up_what_nobody_waits_for(actors: Any, tmp_path: Any) -> None:
    grid = RayGrid(Undelivered(), queue.Queue(), actors)
    ids = grid.push_messages([message(0), message(1)])
    grid.discard(ids[:1])
    assert [file.name for file in actors.folder.glob("discarded-*")] == ["discarded-message-0"]
    reply = WorkerClientApp(actors.address, tmp_path)(message(0), Context(1, 1, {}, RecordDict(), {}))
    assert reply.error.reason == "its round is over"
