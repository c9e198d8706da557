"""A reply that a SuperNode drops while it arrives, sent to the SuperNode's own handlers and state."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.servicer.runtime import runtime_handlers

from zk0.errors import FederationError
from zk0.federation.flower import runtime_task
from zk0.federation.flower.api_client import Endpoint
from zk0.federation.flower.flower_message import SerializedMessage, embed_weights, to_flower
from zk0.federation.flower.private_api import PUSH_MESSAGES, ApiMethod
from zk0.federation.flower.runtime_task import RuntimeTask


class SuperNodeTask(RuntimeTask):
    """A task of run 1 whose calls go to a SuperNode's handlers; `dropping`: it ends when a part arrives."""

    def __init__(self, *, dropping: bool) -> None:
        super().__init__(Endpoint(address="127.0.0.1:1"), "", "flwr-clientapp", 0.0)
        self.state = NodeStateFactory(ObjectStoreFactory()).state()
        self.dropping, self.run_id = dropping, 1

    def call(self, method: ApiMethod, /, **fields: Any) -> Any:
        task: Any = SimpleNamespace(run_id=1)
        request = method.request(**fields)
        if method == PUSH_MESSAGES:
            return runtime_handlers.push_messages(request, self.state, task)
        found = runtime_handlers.push_object(request, self.state, task)
        if self.dropping:
            for message in self.state.get_messages_legacy(is_reply=True):
                self.state.delete_messages(message_ids=[message.metadata.message_id])
                self.state.object_store.delete(message.metadata.message_id)
        return found


@pytest.fixture
def reply(tmp_path: Path) -> SerializedMessage:
    (tmp_path / "weights").write_bytes(bytes(1000))
    config = ConfigRecord({"update": "1", "weights-path": str(tmp_path / "weights")})
    metadata = Metadata(1, "r1", 1, 1, "request", "", time.time(), 60.0, "train")
    return to_flower(Message(content=embed_weights(RecordDict({"answer": config})), metadata=metadata))


def test_a_reply_is_stored_once(reply: SerializedMessage) -> None:
    task = SuperNodeTask(dropping=False)
    assert task.push_reply(reply)
    assert len(task.state.get_messages_legacy(is_reply=True)) == 1


def test_no_copy_of_a_dropped_reply_waits_for_the_next_request(reply: SerializedMessage) -> None:
    task = SuperNodeTask(dropping=True)
    assert not task.push_reply(reply)
    assert not task.state.get_messages_legacy(is_reply=True)


def test_an_upload_that_took_longer_than_the_supernode_waits(
    reply: SerializedMessage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_task, "OBJECT_PUSH_SESSION_TTL_SECONDS", -1)
    with pytest.raises(FederationError, match="did not store a reply, which took 0 s to send"):
        SuperNodeTask(dropping=True).push_reply(reply)
