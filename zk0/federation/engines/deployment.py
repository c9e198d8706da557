"""The deployment engine: the clients are nodes on other machines, connected to Flower's SuperLink on this machine.

The session's own process is the ServerApp. It starts a run for each set of requests (joining, a round), acquires the
run's task, and calls the SuperLink's Runtime API. So no process is started for a round, each round is a run in
`flwr list`, and what ends a run (`flwr stop`, a lost SuperLink) ends that round only. In buffered rounds a run has the
clients that begin together, and goes on beside others until they have answered.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flwr.app import Error, Message, RecordDict
from loguru import logger

from zk0.errors import FederationError, MessageLost, TransientError
from zk0.federation.engines.superlink_run import OpenRun, PendingRequest
from zk0.federation.flower.api_client import Endpoint
from zk0.federation.flower.flower_message import embed_weights, file_record, to_flower
from zk0.federation.flower.private_api import GET_NODES, ErrorCode, new_message, set_reply_to_message_id
from zk0.federation.flower.runtime_task import FetchLimit, RuntimeTask
from zk0.federation.protocol.answers import MAX_REASON
from zk0.records import clean_text

_POLL_SECONDS = 0.5
_CHECK_NODES_SECONDS = 2.0
_MAX_DOWNLOADS = 1000
"""At a time; a round has one of each node, and one that stalls must not take the place of another."""
_MIN_STALL_SECONDS = 120.0
"""An honest node on a slow line takes nearly as long for one chunk."""
_LEAST_DOWNLOAD_SECONDS = 5.0
"""For a reply that arrives at the end of the request's time, as the SuperLink's own reply that this time is over."""
_DELIVERY_ERRORS = {ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE}
"""Errors of the delivery, not of the node: the request is sent again, and finished work is answered from disk."""
_NO_RUN = 0
"""Of a message that was not sent yet."""


class DeploymentGrid:
    """The nodes that are connected to a SuperLink.

    Args:
        endpoint: of the SuperLink.
        inbox: folder for weights that arrive.
        names: names of the enrolled nodes that take part; empty: all.
        absence_seconds: how long a node may be out of reach before its request fails.
    """

    limits_turns = False

    def __init__(
        self, endpoint: Endpoint, inbox: Path, names: Sequence[str] = (), absence_seconds: float = 300.0
    ) -> None:
        self._endpoint = endpoint
        self._inbox = inbox
        self._names = frozenset(names)
        self._absence = absence_seconds
        self._absent_since: dict[int, float] = {}
        self._node_names: dict[int, str] = {}
        self._idle: OpenRun | None = None
        """Run in which nothing was sent yet."""
        self._runs: list[OpenRun] = []
        self._downloads = ThreadPoolExecutor(_MAX_DOWNLOADS, "zk0-download")
        self._polled = self._checked = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        for run in (*self._runs, *([self._idle] if self._idle else ())):
            run.close()
        self._runs, self._idle = [], None
        self._downloads.shutdown()
        shutil.rmtree(self._inbox, ignore_errors=True)

    def get_nodes(self) -> list[Any]:
        """Return the connected nodes that take part; a second call within half a second waits."""
        self._wait_for_poll()
        try:
            return self._connected_nodes(self._idle_run().task)
        except TransientError:
            self._take_idle_run().close()  # another attempt needs another run
            raise

    def make_message(
        self, content: RecordDict, dst_node_id: int, message_type: str, ttl: float, group_id: str
    ) -> Message:
        """Create a message; it gets its run when it is sent."""
        return new_message(_NO_RUN, content, dst_node_id, message_type, ttl, group_id)

    def push_messages(self, messages: Sequence[Message]) -> list[str]:
        """Send messages to connected nodes, and to the others as soon as they connect; return the messages' ids."""
        pending = {message.metadata.message_id: PendingRequest(message) for message in messages}
        run = self._take_idle_run()
        try:
            run.add(pending)
            self._send_due(run, self._nodes_by_name(run.task))
        except BaseException:
            run.close()
            raise
        self._runs.append(run)
        return list(pending)

    def pull_messages(self, ids: Sequence[str]) -> list[Message]:
        """Return the replies that have arrived, each once; a second call within half a second waits."""
        self._wait_for_poll()
        waiting = [run for run in self._runs if not run.pending.keys().isdisjoint(ids)]
        replies: list[Message] = []
        for run in waiting:
            run.pull()
            for name in (name for name in ids if name in run.pending):
                if (reply := self._complete_reply(run, name, run.pending[name])) is not None:
                    del run.pending[name]
                    replies.append(reply)
        if waiting and self._polled > self._checked + _CHECK_NODES_SECONDS:
            self._checked = self._polled
            connected = self._nodes_by_name(waiting[0].task)
            for run in waiting:
                for absent in self._check_nodes(run, connected, ids):
                    del run.pending[absent.metadata.reply_to_message_id]
                    replies.append(absent)
        return replies

    def discard(self, ids: Sequence[str]) -> None:
        """Delete messages and the files of their replies; a run ends with its last message."""
        over = [run for run in self._runs if run.discard(ids)]
        self._runs = [run for run in self._runs if run not in over]
        for run in over:
            run.close()

    def _wait_for_poll(self) -> None:
        time.sleep(max(0.0, self._polled + _POLL_SECONDS - time.monotonic()))
        self._polled = time.monotonic()

    def _idle_run(self) -> OpenRun:
        if self._idle is None:
            self._idle = OpenRun(self._endpoint, self._inbox)
        return self._idle

    def _take_idle_run(self) -> OpenRun:
        """Return the run for the next messages."""
        run, self._idle = self._idle_run(), None
        return run

    def _connected_nodes(self, task: RuntimeTask) -> list[Any]:
        found = task.call(GET_NODES).nodes
        self._node_names |= {int(node.node_id): str(node.name) for node in found}
        return [node for node in found if not self._names or node.name in self._names]

    def _nodes_by_name(self, task: RuntimeTask) -> dict[str, Any]:
        return {str(node.name): node for node in self._connected_nodes(task)}

    def _complete_reply(self, run: OpenRun, name: str, pending: PendingRequest) -> Message | None:
        """Return the reply to a request once it is complete; None before, and where the request is sent again."""
        if pending.reply_tree is None:
            return None
        if pending.fetch is None:
            pending.fetch = self._start_download(run, name, pending)
        if not pending.fetch.done():
            return None
        try:
            found = pending.fetch.result()
        except FederationError as e:
            code = ErrorCode.REPLY_MESSAGE_UNAVAILABLE if isinstance(e, MessageLost) else ErrorCode.UNKNOWN
            found = Message(Error(code, str(e)), reply_to=pending.message)
        is_lost = found.has_error() and found.error.code in _DELIVERY_ERRORS
        if is_lost and pending.seconds_left > 0 and not pending.lost_too_often:
            reason = clean_text(found.error.reason or "", MAX_REASON)
            logger.warning("node {}: {} (code {}); sending again", pending.node, reason, found.error.code)
            pending.lost += 1
            pending.reset()
            return None
        set_reply_to_message_id(found, name)
        return found

    def _start_download(self, run: OpenRun, name: str, pending: PendingRequest) -> Future[Message]:
        """Download a reply in a thread of its own, so that a slow node delays its own answer only."""
        limit = FetchLimit(
            deadline=time.monotonic() + max(pending.seconds_left, _LEAST_DOWNLOAD_SECONDS),
            stall_seconds=max(self._absence, _MIN_STALL_SECONDS),
            max_bytes=pending.largest_answer,
            stopped=pending.stopped,
        )
        return self._downloads.submit(run.task.fetch_message, pending.reply_tree, run.file(name), limit)

    def _check_nodes(self, run: OpenRun, connected: Mapping[str, Any], ids: Sequence[str]) -> list[Message]:
        """Send requests of a run again to nodes that have restarted; return errors for nodes that are absent too long.

        Args:
            run: the run.
            connected: nodes, by name.
            ids: of the messages for which replies are returned.
        """
        started = self._send_due(run, connected)
        now, absent = time.monotonic(), []
        for pending in (run.pending[name] for name in ids if name in run.pending):
            node = pending.node
            if node in started:
                self._absent_since.pop(node, None)
                if pending.sent_id and pending.reply_tree is None and started[node] != pending.node_started:
                    if pending.lost_too_often:
                        reason = f"its node has restarted again, after {pending.lost} deliveries that were lost"
                        absent.append(Message(Error(ErrorCode.NODE_UNAVAILABLE, reason), reply_to=pending.message))
                        continue
                    logger.warning("node {} restarted at {}; sending again", node, started[node])
                    pending.lost += 1
                    pending.reset()
            elif now - self._absent_since.setdefault(node, now) >= self._absence:
                reason = f"its node has been out of reach for {now - self._absent_since[node]:.0f} s"
                absent.append(Message(Error(ErrorCode.NODE_UNAVAILABLE, reason), reply_to=pending.message))
        return absent

    def _send_due(self, run: OpenRun, connected: Mapping[str, Any]) -> dict[int, str]:
        """Send pending requests of a run to connected nodes; return when each node was activated, by node id.

        A SuperLink that has lost its memory, or a new enrolment kit, gives a node another id. Therefore a node is
        identified by its name.
        """
        nodes = {number: connected[name] for number, name in self._node_names.items() if name in connected}
        started = {number: str(node.last_activated_at) for number, node in nodes.items()}
        due = [p for p in run.pending.values() if not p.sent_id and p.node in started and p.seconds_left > 0]
        record = cache(file_record)
        messages = []
        for pending in due:
            content = embed_weights(pending.message.content, record)
            messages.append(to_flower(pending.message_to(int(nodes[pending.node].node_id), content, run.task.run_id)))
        for pending, sent_id in zip(due, run.task.push_messages(messages) if messages else (), strict=True):
            pending.sent_id, pending.node_started = sent_id, started[pending.node]
        return started
