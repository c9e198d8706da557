"""Requests that stay open over several rounds: sent at any time, answered in any order or awaited by name."""

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from flwr.app import Message, MessageType

from zk0.federation.protocol.exchange import (
    ANSWERED_TWICE,
    OF_ANOTHER_ROUND,
    POLL_SECONDS,
    Grid,
    Reply,
    Request,
    limit_turn,
    longest_silence,
    parse_reply,
    timeout_reason,
)
from zk0.federation.protocol.registry import NO_NODE


class TimedReply(NamedTuple):
    """A reply, and how long it took."""

    reply: Reply
    seconds: float


@dataclass(frozen=True)
class _Sent:
    """A request that was sent to a client."""

    message_id: str
    """Empty where its node has not rejoined, so that nothing was sent."""
    round: int
    at: float


class OpenRequests:
    """Train requests to clients, at most one to each.

    Args:
        grid: the engine.
        timeout_seconds: for one request. Where the engine does not limit the time itself (`Grid.limits_turns`), a
            client that does not answer gets a reply with an error.
        extend: time counts from the last answer of any client, because nodes may wait for each other on a GPU.
    """

    def __init__(self, grid: Grid, timeout_seconds: float, extend: bool = False) -> None:
        self._grid, self._timeout = grid, timeout_seconds
        self._extend = extend and not grid.limits_turns
        self._sent: dict[str, _Sent] = {}
        self._arrived: dict[str, TimedReply] = {}
        self._unexpected: list[Reply] = []
        self._last_sent: dict[int, tuple[str, str]] = {}
        """Client and message id of the last request to each node."""
        self._last_answer = -inf

    def __contains__(self, client: str) -> bool:
        return client in self._sent

    def send(self, requests: Mapping[str, tuple[Request, int]]) -> None:
        """Send requests, each with the number of its round, to clients that have none.

        Raises:
            TransientError: the engine cannot send; then all requests are discarded, and sent again when they are due.
        """
        reachable = {name: one for name, one in requests.items() if one[0][0] != NO_NODE}
        for name in requests.keys() - reachable.keys():
            self._arrived[name] = TimedReply(Reply(name, None, "its node has not rejoined the session"), 0.0)
            self._sent[name] = _Sent("", requests[name][1], time.monotonic())
        if not reachable:
            return
        with self._discarding_on_failure():
            ids = self._grid.push_messages(self._messages(reachable.values()))
        sent = time.monotonic()
        for message_id, (name, ((node, _), number)) in zip(ids, reachable.items(), strict=True):
            self._sent[name] = _Sent(message_id, number, sent)
            self._last_sent[node] = name, message_id

    def _messages(self, requests: Collection[tuple[Request, int]]) -> list[Message]:
        lifetime = self._timeout * (len(self._sent) + len(requests)) if self._extend else self._timeout
        return [
            self._grid.make_message(
                limit_turn(content, self._timeout) if self._extend else content,
                node,
                MessageType.TRAIN,
                lifetime,
                str(number),
            )
            for (node, content), number in requests
        ]

    @contextmanager
    def next(self, awaited: str | None) -> Iterator[TimedReply]:
        """Wait for the reply of one client, or of whichever comes first, and yield it; its files stay for the block.

        Args:
            awaited: the client; replies of others are kept. None: any client with a request.

        Raises:
            TransientError: the engine has lost a request; then all are discarded, and sent again when they are due.
        """
        with self._discarding_on_failure():
            while not (awaited in self._arrived if awaited else self._arrived):
                if not self._pull():
                    time.sleep(POLL_SECONDS)
        client = awaited or next(iter(self._arrived))
        try:
            yield self._arrived[client]
        finally:
            self.discard(client)

    def take_unexpected(self) -> list[Reply]:
        """Return, once, the replies that answer no open request: of another round, or a second answer."""
        found, self._unexpected = self._unexpected, []
        return found

    def discard(self, client: str) -> None:
        """Do not wait for a client any longer; nothing happens where it has no request."""
        self._arrived.pop(client, None)
        if (sent := self._sent.pop(client, None)) and sent.message_id:
            self._grid.discard([sent.message_id])

    def discard_all(self) -> list[tuple[int, Reply]]:
        """Do not wait for any client any longer; return the round of each request and its reply.

        A reply that has not arrived is one without content.
        """
        found = [
            (sent.round, self._arrived[name].reply if name in self._arrived else Reply(name, None))
            for name, sent in self._sent.items()
        ]
        for client in list(self._sent):
            self.discard(client)
        return found

    @contextmanager
    def _discarding_on_failure(self) -> Iterator[None]:
        """Discard all requests where the block raises: the runs that hold them may be lost."""
        try:
            yield
        except BaseException:
            self.discard_all()
            raise

    def _pull(self) -> bool:
        """Take the replies that are there, in the order in which their requests were sent."""
        clients = {sent.message_id: name for name, sent in self._sent.items() if name not in self._arrived}
        found = self._grid.pull_messages(list(clients))
        for message in found:
            client = clients.get(message.metadata.reply_to_message_id)
            if client is None or client in self._arrived:
                self._unexpected.append(self._unexpected_reply(message))
            else:
                self._arrive(client, parse_reply(client, message, timeout_reason(self._timeout)))
        waits = not found and not self._grid.limits_turns
        late = [name for name in clients.values() if self._is_late(name)] if waits else []
        for client in late:
            self._arrive(client, Reply(client, None, timeout_reason(self._timeout)))
        return bool(found or late)

    def _unexpected_reply(self, message: Message) -> Reply:
        """Return a reply that answers no open request, with the reason why it does not count."""
        node = message.metadata.src_node_id
        client, asked = self._last_sent.get(node, (f"node {node}", ""))
        is_second = message.metadata.reply_to_message_id == asked
        return Reply(client, None, ANSWERED_TWICE if is_second else OF_ANOTHER_ROUND)

    def _arrive(self, client: str, reply: Reply) -> None:
        now = time.monotonic()
        self._arrived[client] = TimedReply(reply, now - self._sent[client].at)
        self._last_answer = now

    def _is_late(self, client: str) -> bool:
        began = max(self._sent[client].at, self._last_answer) if self._extend else self._sent[client].at
        return time.monotonic() > began + longest_silence(self._grid, self._timeout)
