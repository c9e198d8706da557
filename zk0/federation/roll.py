"""Who has joined a session, and which node is theirs."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from loguru import logger
from pydantic import ValidationError

from zk0.errors import FederationError
from zk0.federation.exchange import Reply
from zk0.federation.spool import first_line
from zk0.records import Member

NOBODY = 0
"""No node has this number."""


class Roll:
    """Grows as clients join; a client is on it once, with the node that it joined from."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self._node_of: dict[str, int] = {}

    def strangers(self, nodes: Iterable[Any], wanted: Collection[str] = ()) -> dict[int, str]:
        """The nodes of an engine that have not joined, and the names they were enrolled under, if they were.

        Where names are `wanted`, a node that was enrolled under another one is left out.
        """
        named = {int(node.node_id): str(getattr(node, "name", "")) for node in nodes}
        joined = set(self._node_of.values())
        return {
            node: name
            for node, name in named.items()
            if node not in joined and name not in self._node_of and (not (wanted and name) or name in wanted)
        }

    def take(self, reply: Reply, node: int, names: Mapping[int, str]) -> str:
        """Put a node's answer to the terms on the roll; why not, where it cannot be, or nothing."""
        if reply.content is None:
            return reply.fault
        try:
            member = Member.model_validate_json(str(reply.content["answer"]["member"]))
        except (KeyError, ValidationError) as e:
            return f"an answer that is no member ({first_line(e)})"
        if (enrolled := names[node]) not in ("", member.client):
            return f"{enrolled}: answers as {member.client}; a node is called as it was enrolled"
        if member.client in self._node_of:
            return f"{member.client}: two nodes answer by this name; expected one each"
        known = self.members.get(member.client, member)
        if known.train_digests != member.train_digests:
            return f"{member.client}: not the episodes that this session began with; restore them to come back"
        self.members[member.client] = member
        self._node_of[member.client] = node
        return ""

    def remember(self, members: Iterable[Member]) -> None:
        """Put clients on the roll that are not there: they have joined before the session was interrupted."""
        for member in members:
            logger.warning("{} has not come back; rounds go on without it", member.client)
            self.members[member.client] = member

    def client(self, node: int) -> str:
        """Who has joined from a node; empty: nobody."""
        return next((name for name, joined in self._node_of.items() if joined == node), "")

    def node(self, client: str) -> int:
        """The node that a client joined from; NOBODY where it is only remembered.

        Raises:
            FederationError: it has not joined.
        """
        if client not in self.members:
            raise FederationError(f"{client}: has not joined; it must join before it trains")
        return self._node_of.get(client, NOBODY)
