"""A task of Flower's Runtime API in this process's hands: what a `flwr-serverapp` or `flwr-clientapp` process has.

SuperLink and SuperNode, started with `--isolation process`, run no process of their own for a task: whoever shows the
secret takes it. A token then stands for the task, which must be heard of every half minute.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flwr.app import Message
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    AcquireTaskResponse,
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PullTaskInputRequest,
    PullTaskInputResponse,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
    PushTaskOutputRequest,
    PushTaskOutputResponse,
    SendTaskHeartbeatRequest,
    SendTaskHeartbeatResponse,
)
from loguru import logger

from zk0.errors import FederationError, MessageLost, TransientError
from zk0.federation.api import ACQUIRE_TASK, Api, Endpoint
from zk0.federation.parcel import Parcel, unpacked

SERVER_APP = "flwr-serverapp"
CLIENT_APP = "flwr-clientapp"
_HEARTBEAT_SECONDS = 15.0
_PUSH_ATTEMPTS = 5


def acquire(api: Api, kind: str) -> tuple[str, Any] | None:
    """The token of the oldest pending task of a kind, and the task; None where there is none.

    Raises:
        NoAnswer: the server is not there.
    """
    found = api.call(ACQUIRE_TASK, AcquireTaskRequest(supported_task_types=[kind]), AcquireTaskResponse)
    return (found.token, found.task) if found.token else None


class Task:
    """A task that was acquired, alive until the block ends; then it is finished, or failed where the block failed.

    Args:
        endpoint: of the SuperLink or SuperNode that it was acquired from.
        token: the one that `acquire` gave.
        kind: SERVER_APP or CLIENT_APP.
        patience_seconds: how long a call waits for a server that is away, as while it is started again.
    """

    def __init__(self, endpoint: Endpoint, token: str, kind: str, patience_seconds: float) -> None:
        self._api = Api(endpoint, token, kind)
        self._patience = patience_seconds
        self._over = threading.Event()
        self._lost: TransientError | None = None
        self._heart = threading.Thread(target=self._beat, daemon=True, name="zk0-task-heartbeat")
        self.run_id = 0
        self.node_id = 0

    def __enter__(self) -> Self:
        found = self._call("pull-task-input", PullTaskInputRequest(), PullTaskInputResponse)
        self.run_id, self.node_id = int(found.run.run_id), int(found.context.node_id)
        self._heart.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        request = PushTaskOutputRequest(sub_status="failed" if e else "completed", details=str(e or "")[:1000])
        try:
            self._api.call("/v1/runtime/push-task-output", request, PushTaskOutputResponse)
        except (TransientError, FederationError) as problem:
            logger.debug("task of run {} could not be finished: {}", self.run_id, problem)  # it has ended already
        with self._api:
            self._heart.join()

    def call(self, name: str, request: Any, answer: type[Any]) -> Any:
        """The answer to one call of this task.

        Raises:
            NoAnswer: the server was away for longer than our patience.
            CallRefused: the task was ended from outside.
        """
        if self._lost is not None:
            raise self._lost
        return self._call(name, request, answer)

    def push(self, parcels: Sequence[Parcel]) -> list[str]:
        """Send messages in one go, so that what they share is sent once.

        Answers their ids; an empty one where the node is not known any more.
        """
        heads, trees = [p.head for p in parcels], [p.tree for p in parcels]
        objects: Mapping[str, Any] = {key: value for p in parcels for key, value in p.objects.items()}
        for _ in range(_PUSH_ATTEMPTS):
            request = PushAppMessagesRequest(messages_list=heads, message_object_trees=trees)
            found = self.call("push-messages", request, PushAppMessagesResponse)
            if self._push_objects(objects, found.objects_to_push, found.session_id):
                return list(found.message_ids)
        raise FederationError(f"objects of a message were not taken in {_PUSH_ATTEMPTS} attempts")

    def arrived(self, ids: Sequence[str]) -> list[tuple[Any, Any]]:
        """Head and object tree of messages that are there; each is handed out once."""
        found = self.call("pull-messages", PullAppMessagesRequest(message_ids=ids), PullAppMessagesResponse)
        return list(zip(found.messages_list, found.message_object_trees, strict=True))

    def is_whole(self, tree: Any) -> bool:
        """Whether all of a message has been uploaded.

        Raises:
            MessageLost: it never will be: the upload was given up.
        """
        return self._pull(tree.object_id) is not None

    def fetch(self, tree: Any, target: Path) -> Message:
        """A whole message; weights that come with it are in `target`."""
        message = unpacked(tree, self._fetch, target)
        request = ConfirmMessageReceivedRequest(node=self._node(), run_id=self.run_id, message_object_id=tree.object_id)
        self.call("confirm-message-received", request, ConfirmMessageReceivedResponse)
        return message

    def _push_objects(self, objects: Mapping[str, Any], wanted: Sequence[str], session: str) -> bool:
        for object_id in wanted:
            request = PushObjectRequest(
                node=self._node(),
                run_id=self.run_id,
                object_id=object_id,
                object_content=objects[object_id].deflate(),
                session_id=session,
            )
            if not self.call("push-object", request, PushObjectResponse).stored:
                return False  # stored by a call whose answer was lost, or the session is over: ask what is missing
        return True

    def _fetch(self, object_id: str) -> bytes:
        while (content := self._pull(object_id)) is None:
            time.sleep(0.2)
        return content

    def _pull(self, object_id: str) -> bytes | None:
        request = PullObjectRequest(node=self._node(), run_id=self.run_id, object_id=object_id)
        found = self.call("pull-object", request, PullObjectResponse)
        if not found.object_found:
            raise MessageLost(f"object {object_id[:12]} of a message is gone: its upload was given up")
        return bytes(found.object_content) if found.object_available else None

    def _node(self) -> Node:
        return Node(node_id=self.node_id)

    def _call(self, name: str, request: Any, answer: type[Any]) -> Any:
        return self._api.call(f"/v1/runtime/{name}", request, answer, self._patience)

    def _beat(self) -> None:
        while not self._over.wait(_HEARTBEAT_SECONDS):
            try:
                self._call("send-task-heartbeat", SendTaskHeartbeatRequest(), SendTaskHeartbeatResponse)
            except TransientError as e:  # carried to whoever calls next
                self._lost = e
                return
            except FederationError as e:
                logger.warning("heartbeat of run {}: {}", self.run_id, e)
