"""Limits on the gateway's connections, which count from the moment they are accepted.

A connection waits until its first request is authenticated; from then on it belongs to the node that signed it, and
counts for that node alone. Waiting connections are limited in total and per address. An address from which an enrolled
node has come has places of its own, which connections from other addresses cannot take.

Where a limit is reached, a connection is closed instead of the new one being refused: the one that has waited longest
at the address with most of them. An honest node authenticates within a few round trips, so it is rarely the oldest; if
new connections were refused, whoever came first could keep all others out.
"""

import time
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address, ip_network

from loguru import logger

from zk0.records import Record

_ADDRESSES_PER_NODE = 2
"""Reserved places follow a node to its last addresses."""
_LOG_SECONDS = 60.0


class ConnectionLimits(Record):
    """How many connections may be open at a time."""

    waiting: int = 256
    """Not yet authenticated, without those in reserved places."""
    waiting_per_address: int = 64
    """An IPv6 address counts as its /64 network."""
    reserved_per_address: int = 16
    """Places for an address from which an enrolled node has come."""
    per_node: int = 16
    """Authenticated; a SuperNode uses one for each of its threads."""
    handshake_seconds: float = 10.0
    """From accepting a connection to the end of its TLS handshake."""


class AcceptedConnection:
    """One connection; `close` ends it with a reason."""

    def __init__(self, address: str, close: Callable[[str], None]) -> None:
        self.address = address
        self.close = close
        self.node = ""
        """The node that its last request came from; empty while it waits."""


class AcceptedConnections:
    """All connections that are open, within limits."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._waiting: dict[str, dict[AcceptedConnection, None]] = {}
        self._by_node: dict[str, dict[AcceptedConnection, None]] = {}
        self._addresses: dict[str, tuple[str, ...]] = {}

    def add(self, peer: str, close: Callable[[str], None]) -> AcceptedConnection:
        """Count a connection that was just accepted, and close another one where a limit is reached.

        Args:
            peer: IP address of the other end.
            close: is called with the reason to close this connection.
        """
        connection = AcceptedConnection(_network(peer), close)
        there = self._waiting.setdefault(connection.address, {})
        if len(there) >= self._limits.waiting_per_address:
            self._close(next(iter(there)), f"{len(there)} connections of {connection.address} wait")
        self._waiting.setdefault(connection.address, {})[connection] = None
        known = {address for addresses in self._addresses.values() for address in addresses}
        excess = {address: self._excess(address, known) for address in self._waiting}
        if (total := sum(excess.values())) > self._limits.waiting:
            most = max(excess, key=lambda address: excess[address])
            self._close(next(iter(self._waiting[most])), f"{total} connections wait")
        return connection

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

    def remove(self, connection: AcceptedConnection) -> None:
        """Count a connection no longer; one that is not counted is ignored."""
        group, key = (self._by_node, connection.node) if connection.node else (self._waiting, connection.address)
        members = group.get(key, {})
        members.pop(connection, None)
        if not members:
            group.pop(key, None)

    def _close(self, connection: AcceptedConnection, reason: str) -> None:
        self.remove(connection)
        connection.close(reason)

    def _excess(self, address: str, known: set[str]) -> int:
        reserved = self._limits.reserved_per_address if address in known else 0
        return max(0, len(self._waiting[address]) - reserved)


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
