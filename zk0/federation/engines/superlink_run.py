"""Requests to nodes, and the run of the SuperLink in which some of them were sent together."""

import json
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Message, MessageType, RecordDict

from zk0.federation.flower.api_client import Endpoint
from zk0.federation.flower.flower_message import WEIGHTS_PATH
from zk0.federation.flower.flower_run import open_run, stop_run
from zk0.federation.flower.private_api import new_message
from zk0.federation.flower.runtime_task import RuntimeTask
from zk0.federation.protocol.exchange import ANSWER_BYTES

_LARGEST_RATIO = {"bf16": 2, "int8": 4}
"""Bytes of a float32 upload to those of the download, by the format of the download."""
_EXTRA_BYTES = 1 << 16
"""What another header may add to a file."""
MAX_DELIVERIES = 20
"""Of one request; a node that restarts after each, or answers with such an error, would get the weights for ever."""


@dataclass
class PendingRequest:
    """A request to one node, and where its reply is."""

    message: Message
    sent_id: str = ""
    """Id of the message on the SuperLink; empty: not sent yet, or to be sent again."""
    node_started: str = ""
    """When the node was activated that it was sent to; a node that is activated again has forgotten the message."""
    reply_tree: Any = None
    """Object tree of the reply, once the node has begun to upload it."""
    fetch: Future[Message] | None = None
    """The download of the reply."""
    lost: int = 0
    """Replies that were errors of the delivery, and restarts of the node before it answered."""
    stopped: threading.Event = field(default_factory=threading.Event)
    """Ends the download when set."""

    @property
    def node(self) -> int:
        return int(self.message.metadata.dst_node_id)

    @property
    def seconds_left(self) -> float:
        metadata = self.message.metadata
        return float(metadata.created_at + metadata.ttl - time.time())

    @property
    def lost_too_often(self) -> bool:
        return self.lost + 1 >= MAX_DELIVERIES

    def reset(self) -> None:
        """Mark the request as to be sent again."""
        self.sent_id, self.reply_tree, self.fetch = "", None, None

    @property
    def largest_answer(self) -> int:
        """The largest size of the weights that an honest node answers with; 0 for requests that it answers with text.

        Uploads have at most 4 bytes for each weight, and downloads at least as many as their format says.
        """
        config = self.message.content["config"]
        if type(stated := config.get(ANSWER_BYTES)) is int:
            return stated
        if self.message.metadata.message_type != MessageType.TRAIN or WEIGHTS_PATH not in config:
            return 0
        wire = json.loads(str(config.get("plan", "{}"))).get("wire", {})
        size = Path(str(config[WEIGHTS_PATH])).stat().st_size * _LARGEST_RATIO.get(wire.get("download"), 1)
        return int(size + size // 50 + _EXTRA_BYTES)

    def message_to(self, node: int, content: RecordDict, run_id: int) -> Message:
        """Return the message in the form that is sent: to the node's current id, in the open run."""
        metadata = self.message.metadata
        return new_message(run_id, content, node, metadata.message_type, self.seconds_left, metadata.group_id)


class OpenRun:
    """A run on the SuperLink, and the requests that were sent in it together.

    Args:
        endpoint: of the SuperLink.
        inbox: folder for weights that arrive.
    """

    def __init__(self, endpoint: Endpoint, inbox: Path) -> None:
        self._endpoint, self._inbox = endpoint, inbox
        self._block = ExitStack()
        self.task: RuntimeTask = self._block.enter_context(open_run(endpoint))
        self.pending: dict[str, PendingRequest] = {}
        """Requests without a reply, by the ids of their messages."""
        self._kept: set[str] = set()
        """Ids of all messages that were not discarded."""
        self._is_abandoned = False

    def add(self, pending: Mapping[str, PendingRequest]) -> None:
        """Take requests that are sent in this run."""
        self.pending |= pending
        self._kept |= pending.keys()

    def file(self, name: str) -> Path:
        """Return where the weights of a reply are written."""
        return self._inbox / f"{name}.safetensors"

    def pull(self) -> None:
        """Ask the SuperLink which replies have arrived."""
        sent = {p.sent_id: p for p in self.pending.values() if p.sent_id and p.reply_tree is None}
        for proto, tree in self.task.pull_messages(list(sent)):
            sent[proto.metadata.reply_to_message_id].reply_tree = tree

    def discard(self, ids: Iterable[str]) -> bool:
        """Remove requests with their replies; return whether none is left in the run, so that it can be closed."""
        found = self._kept.intersection(ids)
        unanswered = [self.pending.pop(name) for name in found if name in self.pending]
        for pending in unanswered:
            pending.stopped.set()
        wait([pending.fetch for pending in unanswered if pending.fetch is not None and not pending.fetch.cancel()])
        for name in found:
            self.file(name).unlink(missing_ok=True)
        self._kept -= found
        self._is_abandoned |= bool(unanswered)
        return not self._kept

    def close(self) -> None:
        """End the run: the SuperLink deletes its messages, and rejects replies to them."""
        self.discard(list(self._kept))
        if self._is_abandoned:
            stop_run(self._endpoint, self.task.run_id)
        self._block.close()
