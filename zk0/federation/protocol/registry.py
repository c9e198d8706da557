"""Registry of a session's clients: who has joined, and from which node."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from loguru import logger

from zk0.errors import FederationError
from zk0.federation.protocol.answers import MAX_REASON, MEMBER, is_safe_client_name, parse_answer
from zk0.federation.protocol.exchange import Reply
from zk0.federation.protocol.member_rules import member_faults
from zk0.records import Member, clean_text
from zk0.settings.dataset_settings import ContractSettings

NO_NODE = 0
"""Node id of a client that has not rejoined; no node of Flower has it."""


class Registry:
    """The clients that have joined a session, each with the node that it joined from.

    Args:
        contract: of the session, which the clients' answers are compared with; None: they are not.
    """

    def __init__(self, contract: ContractSettings | None = None) -> None:
        self._contract = contract
        self.invalid: dict[int, str] = {}
        """Nodes that sent what no honest one sends: the client's name if it is known, by node id."""
        self.members: dict[str, Member] = {}
        self._nodes: dict[str, int] = {}

    def unregistered_nodes(self, nodes: Iterable[Any], expected: Collection[str] = ()) -> dict[int, str]:
        """Return the nodes that have not joined: the name that each was enrolled under, by node id.

        The name is empty on engines whose nodes are not enrolled. Where names are `expected`, nodes that were enrolled
        under another one are left out.
        """
        names = {int(node.node_id): str(getattr(node, "name", "")) for node in nodes}
        joined = set(self._nodes.values())
        return {
            node: name
            for node, name in names.items()
            if node not in joined and name not in self._nodes and (not (expected and name) or name in expected)
        }

    def register(self, reply: Reply, node: int, names: Mapping[int, str]) -> str:
        """Register the client that a node joins with.

        Args:
            reply: the node's answer to the session's terms.
            node: its node id.
            names: the name that each node was enrolled under, by node id.

        Returns:
            Why the client cannot take part; empty where it was registered.
        """
        if reply.content is None:
            return self._refuse(node, names[node], reply.error) if reply.invalid else reply.error
        enrolled = names[node]
        try:
            member = parse_answer(reply.content, MEMBER, Member)
        except FederationError as e:
            return self._refuse(node, enrolled, str(e))
        if enrolled not in ("", member.client):
            found = f"its node joins as client {member.client}; expected the name that it was enrolled under"
            return self._refuse(node, enrolled, f"{enrolled}: {found}")
        if not is_safe_client_name(member.client):
            return self._refuse(node, enrolled, f"it joins as {member.client[:80]!r}, which is not a client's name")
        if faults := member_faults(member, self._contract):
            return self._refuse(node, member.client, f"{member.client}: {'; '.join(faults)}")
        if member.client in self._nodes:
            return f"{member.client}: two nodes join under this name; expected one"
        known = self.members.get(member.client, member)
        if known.train_digests != member.train_digests:
            return f"{member.client}: its training episodes differ from those that it joined with; restore them"
        self.members[member.client] = member
        self._nodes[member.client] = node
        return ""

    def _refuse(self, node: int, client: str, reason: str) -> str:
        self.invalid[node] = client
        return clean_text(reason, MAX_REASON)

    def restore(self, members: Iterable[Member]) -> None:
        """Register clients that joined before the session was interrupted and have not rejoined yet."""
        for member in members:
            logger.warning("{} has not rejoined; rounds go on without it", member.client)
            self.members[member.client] = member

    def client_of(self, node: int) -> str:
        """Return the client that joined from a node; empty where none has."""
        return next((name for name, joined in self._nodes.items() if joined == node), "")

    def node_of(self, client: str) -> int:
        """Return the node that a client joined from; NO_NODE where it was restored and has not rejoined.

        Raises:
            FederationError: the client has not joined.
        """
        if client not in self.members:
            raise FederationError(f"{client}: has not joined; it must join before it trains")
        return self._nodes.get(client, NO_NODE)
