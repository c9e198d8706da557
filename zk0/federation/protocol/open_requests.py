"""Requests that stay open over several rounds: sent at any time, answered in any order or awaited by name."""

import time
from typing import NamedTuple

from flwr.app import MessageType

from zk0.federation.protocol.exchange import POLL_SECONDS, Grid, Reply, Request, parse_reply
from zk0.federation.protocol.registry import NO_NODE


class TimedReply(NamedTuple):
    """A reply, and how long it took."""

    reply: Reply
    seconds: float


class OpenRequests:
    """Train requests to clients, at most one to each.

    Args:
        grid: an engine that limits the time of each request itself (`Grid.limits_turns`).
        timeout_seconds: for one request.
    """

    def __init__(self, grid: Grid, timeout_seconds: float) -> None:
        self._grid, self._timeout = grid, timeout_seconds
        self._sent: dict[str, tuple[str, float]] = {}
        """Client -> id of its message, and when it was sent."""
        self._arrived: dict[str, TimedReply] = {}

    def __contains__(self, client: str) -> bool:
        return client in self._sent or client in self._arrived

    def send(self, client: str, request: Request, round_number: int) -> None:
        """Send a request to a client that has none."""
        node, content = request
        if node == NO_NODE:
            self._arrived[client] = TimedReply(Reply(client, None, "its node has not rejoined the session"), 0.0)
            return
        message = self._grid.make_message(content, node, MessageType.TRAIN, self._timeout, str(round_number))
        sent = time.monotonic()
        (message_id,) = self._grid.push_messages([message])
        self._sent[client] = message_id, sent

    def next(self, awaited: str | None) -> TimedReply:
        """Wait for the reply of one client, or of whichever comes first, and return it.

        Args:
            awaited: the client; replies of others are kept. None: any client with a request.
        """
        while not (awaited in self._arrived if awaited else self._arrived):
            if not self._pull():
                time.sleep(POLL_SECONDS)
        return self._arrived.pop(awaited or next(iter(self._arrived)))

    def discard(self, client: str) -> None:
        """Do not wait for a client any longer; nothing happens where it has no request."""
        self._arrived.pop(client, None)
        if sent := self._sent.pop(client, None):
            self._grid.discard([sent[0]])

    def discard_all(self) -> None:
        """Do not wait for any client any longer."""
        for client in list(self._sent):
            self.discard(client)
        self._arrived.clear()

    def _pull(self) -> bool:
        """Take the replies that are there, in the order in which their requests were sent."""
        clients = {message_id: client for client, (message_id, _) in self._sent.items()}
        found = self._grid.pull_messages(list(clients))
        for message in found:
            client = clients[message.metadata.reply_to_message_id]
            _, sent = self._sent.pop(client)
            reply = parse_reply(client, message, f"no answer within {self._timeout:g} s")
            self._arrived[client] = TimedReply(reply, time.monotonic() - sent)
        return bool(found)
