"""A task of Flower's Runtime API, held by this process as a `flwr-serverapp` or `flwr-clientapp` process would hold it.

SuperLink and SuperNode, started with `--isolation process`, start no process for a task: whoever knows the secret may
acquire it. The token that it then gets stands for the task; the task ends when no heartbeat arrives for a minute.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flwr.app import Message
from loguru import logger

from zk0.errors import FederationError, MessageLost, TransientError
from zk0.federation.flower.api_client import ApiClient, Endpoint
from zk0.federation.flower.flower_message import SerializedMessage, from_flower, has_too_many_objects
from zk0.federation.flower.private_api import (
    ACQUIRE_TASK,
    CONFIRM_MESSAGE_RECEIVED,
    OBJECT_PUSH_SESSION_TTL_SECONDS,
    PULL_MESSAGES,
    PULL_OBJECT,
    PULL_TASK_INPUT,
    PUSH_MESSAGES,
    PUSH_OBJECT,
    PUSH_TASK_OUTPUT,
    SEND_TASK_HEARTBEAT,
    ApiMethod,
    Node,
)

_HEARTBEAT_SECONDS = 15.0
_PUSH_ATTEMPTS = 5
_PULL_SECONDS = 0.2


@dataclass(frozen=True)
class FetchLimit:
    """What the download of one message may take."""

    deadline: float
    """On the clock of `time.monotonic`."""
    stall_seconds: float
    """How long its sender may take for one object."""
    max_bytes: int
    """Of its weights."""
    stopped: threading.Event = field(default_factory=threading.Event)
    """Ends the download when set."""


def acquire_task(api: ApiClient, task_type: str) -> tuple[str, Any] | None:
    """Acquire the oldest pending task, and return its token and the task; None where there is none.

    Args:
        api: of the SuperLink or SuperNode.
        task_type: SERVER_APP or CLIENT_APP.

    Raises:
        ServerUnavailable: the SuperLink or SuperNode does not answer.
    """
    found = api.call(ACQUIRE_TASK, supported_task_types=[task_type])
    return (found.token, found.task) if found.token else None


class RuntimeTask:
    """An acquired task with heartbeats until the block ends; then it is completed, or failed where the block raised.

    Args:
        endpoint: of the SuperLink or SuperNode that the task was acquired from.
        token: from `acquire_task`.
        component: SERVER_APP or CLIENT_APP.
        retry_seconds: how long a call waits for a server that is unavailable, as while it restarts.
    """

    def __init__(self, endpoint: Endpoint, token: str, component: str, retry_seconds: float) -> None:
        self._api = ApiClient(endpoint, token, component)
        self._retry_seconds = retry_seconds
        self._ended = threading.Event()
        self._lost: TransientError | None = None
        self._heartbeats = threading.Thread(target=self._send_heartbeats, daemon=True, name="zk0-task-heartbeat")
        self.run_id = 0
        self.node_id = 0

    def __enter__(self) -> Self:
        found = self._call(PULL_TASK_INPUT)
        self.run_id, self.node_id = int(found.run.run_id), int(found.context.node_id)
        self._heartbeats.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        try:
            self._api.call(PUSH_TASK_OUTPUT, sub_status="failed" if e else "completed", details=str(e or "")[:1000])
        except (TransientError, FederationError) as problem:
            logger.debug("task of run {} could not be completed: {}", self.run_id, problem)  # it has ended already
        with self._api:
            self._heartbeats.join()

    def call(self, method: ApiMethod, /, **fields: Any) -> Any:
        """Call a method of the Runtime API as this task, and return its response.

        Raises:
            ServerUnavailable: the server was unavailable for longer than `retry_seconds`.
            RunEnded: the task was ended by somebody else.
        """
        if self._lost is not None:
            raise self._lost
        return self._call(method, **fields)

    def push_messages(self, messages: Sequence[SerializedMessage]) -> list[str]:
        """Send messages in one call, so that objects that they share are sent once.

        Returns their ids; an empty id where the SuperLink does not know the node any more.
        """
        for _ in range(_PUSH_ATTEMPTS):
            stored, ids = self._push_once(messages)
            if stored:
                return ids
        raise FederationError(f"the server did not store the objects of a message in {_PUSH_ATTEMPTS} attempts")

    def push_reply(self, reply: SerializedMessage) -> bool:
        """Send a reply to a SuperNode, once; return whether the SuperNode has taken it.

        A SuperNode drops a reply whose run is over, also while its objects arrive. A second copy of a dropped reply
        would pass for the reply to the next request, and every reply after it would be one request late.

        Raises:
            FederationError: the reply took longer than a SuperNode waits, so it has deleted it and waits for another.
        """
        started = time.time()  # a suspended machine counts, too
        stored, _ = self._push_once([reply])
        if not stored and (seconds := time.time() - started) > OBJECT_PUSH_SESSION_TTL_SECONDS:
            raise FederationError(f"the SuperNode did not store a reply, which took {seconds:.0f} s to send")
        return stored

    def pull_messages(self, message_ids: Sequence[str]) -> list[tuple[Any, Any]]:
        """Return message and object tree of each message that has arrived; the server returns each one once."""
        found = self.call(PULL_MESSAGES, message_ids=message_ids)
        return list(zip(found.messages_list, found.message_object_trees, strict=True))

    def fetch_message(self, object_tree: Any, target: Path, limit: FetchLimit) -> Message:
        """Download a message; weights that it carries are written to `target`.

        The server deletes a message that is complete, and one that is refused: it takes no more objects of it.

        Raises:
            MessageLost: its sender has aborted the upload, or no object of it has arrived for too long.
            FederationError: it is larger than the limit, or was not complete in time.
        """
        try:
            if has_too_many_objects(object_tree, limit.max_bytes):
                raise FederationError(f"a message of more objects than weights of {limit.max_bytes} bytes have")
            message = from_flower(object_tree, partial(self._fetch_object, limit), target, limit.max_bytes)
        except MessageLost:
            raise
        except FederationError:
            with suppress(FederationError, TransientError):  # the run may be over, which deletes it, too
                self._confirm(object_tree)
            raise
        self._confirm(object_tree)
        return message

    def _confirm(self, object_tree: Any) -> None:
        """Let the server delete a message."""
        self.call(
            CONFIRM_MESSAGE_RECEIVED,
            node=self._node(),
            run_id=self.run_id,
            message_object_id=object_tree.object_id,
        )

    def _push_once(self, messages: Sequence[SerializedMessage]) -> tuple[bool, list[str]]:
        """Return whether all objects of the messages are stored, and the ids of the messages."""
        objects: Mapping[str, Any] = {key: value for message in messages for key, value in message.objects.items()}
        found = self.call(
            PUSH_MESSAGES,
            messages_list=[message.proto for message in messages],
            message_object_trees=[message.object_tree for message in messages],
        )
        return self._push_objects(objects, found.objects_to_push, found.session_id), list(found.message_ids)

    def _push_objects(self, objects: Mapping[str, Any], missing: Sequence[str], session_id: str) -> bool:
        for object_id in missing:
            found = self.call(
                PUSH_OBJECT,
                node=self._node(),
                run_id=self.run_id,
                object_id=object_id,
                object_content=objects[object_id].deflate(),
                session_id=session_id,
            )
            if not found.stored:
                return False  # an earlier call has stored it and its response was lost, or the upload session is over
        return True

    def _fetch_object(self, limit: FetchLimit, object_id: str) -> bytes:
        started = time.monotonic()
        while (content := self._pull_object(object_id)) is None:
            now = time.monotonic()
            if limit.stopped.is_set() or now > limit.deadline:
                raise FederationError("its upload was not complete in time")
            if now - started > limit.stall_seconds:
                raise MessageLost(f"its upload stopped: no part of it arrived for {limit.stall_seconds:g} s")
            limit.stopped.wait(_PULL_SECONDS)
        if time.monotonic() > limit.deadline:
            raise FederationError("its upload was not complete in time")
        return content

    def _pull_object(self, object_id: str) -> bytes | None:
        found = self.call(PULL_OBJECT, node=self._node(), run_id=self.run_id, object_id=object_id)
        if not found.object_found:
            raise MessageLost(f"object {object_id[:12]} of a message does not exist: its sender aborted the upload")
        return bytes(found.object_content) if found.object_available else None

    def _node(self) -> Node:
        return Node(node_id=self.node_id)

    def _call(self, method: ApiMethod, /, **fields: Any) -> Any:
        return self._api.call(method, retry_seconds=self._retry_seconds, **fields)

    def _send_heartbeats(self) -> None:
        while not self._ended.wait(_HEARTBEAT_SECONDS):
            try:
                self._call(SEND_TASK_HEARTBEAT)
            except TransientError as e:  # raised by the next call
                self._lost = e
                return
            except FederationError as e:
                logger.warning("heartbeat of run {}: {}", self.run_id, e)
