"""Limits on the gateway's connections, which count from the moment they are accepted.

A connection is accepted and costs little until it has its turn for a TLS handshake. From then on it waits until its
first request is authenticated; later it belongs to the node that signed the request, and counts for that node alone.

Only waiting connections have buffers for TLS, and their number is limited. So the others queue: whoever sends nothing
has no turn, addresses with fewer waiting connections come first, and those of an address in the order of their arrival.
Where others queue, a connection loses its place when the other end has been silent for too long. An honest node
authenticates within a few round trips, so its connections pass through, however many others come from its address. An
address from which an enrolled node has come has places of its own, which connections from other addresses cannot take.
"""

import asyncio
import time
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address, ip_network

from loguru import logger

from zk0.records import Record

_ADDRESSES_PER_NODE = 2
"""Reserved places follow a node to its last addresses."""
_LOG_SECONDS = 60.0
_LOOK_SECONDS = 0.05
"""Between two looks at what waiting connections have sent."""


class ConnectionLimits(Record):
    """How many connections may be open at a time."""

    accepted: int = 6000
    """Before their turn for a TLS handshake; each costs a few kB."""
    waiting: int = 192
    """From their turn to their first authenticated request, without those in reserved places; each costs 300 kB."""
    silent_seconds: float = 1.0
    """For how long a waiting connection may send nothing after its handshake, if others queue."""
    unfinished_seconds: float = 2.0
    """For how long a waiting connection may send nothing before the end of its handshake, if others queue."""
    reserved_per_address: int = 16
    """Places for an address from which an enrolled node has come; an IPv6 address counts as its /64 network."""
    per_node: int = 16
    """Authenticated; a SuperNode uses one for each of its threads."""
    handshake_seconds: float = 10.0
    """From accepting a connection to its first byte, and from its turn to the end of its TLS handshake."""


class AcceptedConnection:
    """One connection; `close` ends it with a reason, and `has_unread` returns whether something of it was not read."""

    def __init__(self, address: str, close: Callable[[str], None], has_unread: Callable[[], bool]) -> None:
        self.address = address
        self.close = close
        self.has_unread = has_unread
        self.node = ""
        """The node that its last request came from; empty before."""
        self.turn: asyncio.Future[None] | None = None
        """Done when its turn has come; None: it has sent nothing yet."""
        self.heard = 0.0
        """When its turn came, its handshake ended or something that it had sent was last seen unread."""
        self.established = False
        """Whether its handshake has ended."""


type _Group = dict[str, dict[AcceptedConnection, None]]
"""Connections by address or node, oldest first."""


class AcceptedConnections:
    """All connections that are open, within limits."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._silent: _Group = {}
        self._queued: _Group = {}
        self._waiting: _Group = {}
        self._by_node: _Group = {}
        self._accepted = 0
        self._addresses: dict[str, tuple[str, ...]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, peer: str, close: Callable[[str], None], has_unread: Callable[[], bool]) -> AcceptedConnection:
        """Count a connection that was just accepted, and close another one where there are too many.

        Args:
            peer: IP address of the other end.
            close: is called with the reason to close this connection.
            has_unread: returns whether something that it has sent was not read yet.
        """
        connection = AcceptedConnection(_network(peer), close, has_unread)
        if self._accepted >= self._limits.accepted:
            group = self._silent or self._queued
            most = max(group, key=lambda address: len(group[address]))
            self._close(next(iter(group[most])), f"{self._accepted} connections have not begun")
        self._silent.setdefault(connection.address, {})[connection] = None
        self._accepted += 1
        return connection

    async def wait_for_turn(self, connection: AcceptedConnection) -> None:
        """Return when a connection that has sent something may begin its TLS handshake."""
        self.remove(connection)
        connection.turn = asyncio.get_running_loop().create_future()
        self._queued.setdefault(connection.address, {})[connection] = None
        self._accepted += 1
        self._start_turns()
        await connection.turn

    def establish(self, connection: AcceptedConnection) -> None:
        """Take note that the handshake of a connection has ended."""
        connection.established, connection.heard = True, time.monotonic()

    def assign(self, connection: AcceptedConnection, node: str) -> None:
        """Count a connection for the node that signed its request; one too many closes the node's oldest one."""
        if connection.node == node:
            return
        self.remove(connection)
        own = self._by_node.setdefault(node, {})
        if len(own) >= self._limits.per_node:
            self._close(next(iter(own)), f"{node} has {len(own)} connections")
        connection.node = node
        self._by_node.setdefault(node, {})[connection] = None
        others = [address for address in self._addresses.get(node, ()) if address != connection.address]
        self._addresses[node] = (*others, connection.address)[-_ADDRESSES_PER_NODE:]
        self._start_turns()

    def remove(self, connection: AcceptedConnection) -> None:
        """Count a connection no longer; one that is not counted is ignored."""
        if connection.node:
            _discard(self._by_node, connection.node, connection)
        elif _discard(self._waiting, connection.address, connection):
            self._start_turns()
        elif any(_discard(group, connection.address, connection) for group in (self._silent, self._queued)):
            self._accepted -= 1

    def _close(self, connection: AcceptedConnection, reason: str) -> None:
        self.remove(connection)
        connection.close(reason)

    def _start_turns(self) -> None:
        """Let queued connections begin while there are places."""
        known = self._known_addresses()
        while self._queued:
            free = {address: -self._excess(address, known) for address in self._queued}
            address = max(free, key=lambda one: free[one])
            taken = sum(max(0, self._excess(one, known)) for one in self._waiting)
            if free[address] <= 0 and taken >= self._limits.waiting:
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._make_places)
                return
            self._begin(next(iter(self._queued[address])))

    def _make_places(self) -> None:
        """Close silent connections at the addresses with most, as many as there are others that queue."""
        self._timer, now, known = None, time.monotonic(), self._known_addresses()
        silent: dict[str, list[AcceptedConnection]] = {}
        for address, there in self._waiting.items():
            silent[address] = [connection for connection in reversed(there) if self._is_silent(connection, now)]
        for _ in range(sum(map(len, self._queued.values()))):
            most = max(self._waiting, key=lambda address: self._excess(address, known), default="")
            if not silent.get(most):
                break
            late = silent[most].pop()
            _discard(self._waiting, most, late)
            late.close("it has sent nothing for too long, and others wait")
        self._start_turns()

    def _is_silent(self, connection: AcceptedConnection, now: float) -> bool:
        if connection.has_unread():  # it is this process that is late
            connection.heard = now
        limits = self._limits
        return now - connection.heard > (limits.silent_seconds if connection.established else limits.unfinished_seconds)

    def _known_addresses(self) -> set[str]:
        return {address for addresses in self._addresses.values() for address in addresses}

    def _begin(self, connection: AcceptedConnection) -> None:
        _discard(self._queued, connection.address, connection)
        self._accepted -= 1
        self._waiting.setdefault(connection.address, {})[connection] = None
        connection.heard = time.monotonic()
        if connection.turn is not None and not connection.turn.done():
            connection.turn.set_result(None)

    def _excess(self, address: str, known: set[str]) -> int:
        """Return how many waiting connections of an address are not in reserved places; negative: these are free."""
        reserved = self._limits.reserved_per_address if address in known else 0
        return len(self._waiting.get(address, ())) - reserved


def _discard(group: _Group, key: str, connection: AcceptedConnection) -> bool:
    """Remove a connection from a group; return whether it was in it."""
    members = group.get(key, {})
    found = connection in members
    members.pop(connection, None)
    if key in group and not members:
        del group[key]
    return found


class LogQuota:
    """Writes at most `lines` warnings a minute, so that nobody fills the disk with them; left out ones are counted.

    Args:
        lines: in a minute.
        clock: returns seconds.
    """

    def __init__(self, lines: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._lines = lines
        self._clock = clock
        self._until = 0.0
        self._count = 0

    def warning(self, message: str) -> None:
        """Write a warning, unless this minute's are used up."""
        if (now := self._clock()) >= self._until:
            if self._count > self._lines:
                logger.warning("{} more warnings like these in the last minute", self._count - self._lines)
            self._until, self._count = now + _LOG_SECONDS, 0
        self._count += 1
        if self._count <= self._lines:
            logger.warning("{}", message)


def _network(peer: str) -> str:
    """Return the address that limits count for: an IPv4 address, or the /64 network of an IPv6 address.

    >>> _network("192.0.2.7"), _network("::ffff:192.0.2.7"), _network("2001:db8:1:2:3::4")
    ('192.0.2.7', '192.0.2.7', '2001:db8:1:2::/64')
    """
    address = ip_address(peer.partition("%")[0])
    if not isinstance(address, IPv6Address):
        return str(address)
    return str(address.ipv4_mapped or ip_network((address.packed, 64), strict=False))
