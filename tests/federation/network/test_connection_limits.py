"""Limits of the gateway's connections: which one is closed, and that enrolled nodes get through."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from loguru import logger
from running_gateway import RunningGateway, running_gateway, status_of
from waiting import wait_until

from zk0.federation.network.certificate_authority import make_node_key
from zk0.federation.network.connection_limits import AcceptedConnection, AcceptedConnections, ConnectionLimits, LogQuota

SECONDS, WAIT = 0.1, 0.2


def in_loop[S](test: Callable[[S], Coroutine[Any, Any, None]]) -> Callable[[S], None]:
    """Return a test that runs in an event loop of its own."""

    @wraps(test)
    def run(suite: S) -> None:
        asyncio.run(test(suite))

    return run


LIMITS = ConnectionLimits(
    accepted=4, waiting=3, silent_seconds=SECONDS, unfinished_seconds=4 * SECONDS, reserved_per_address=2, per_node=2
)


class Clients:
    """Connections by name; `closed` lists those that were closed because of a limit."""

    def __init__(self, limits: ConnectionLimits = LIMITS) -> None:
        self.all = AcceptedConnections(limits)
        self.closed: list[str] = []
        self.open: dict[str, AcceptedConnection] = {}
        self.begun: list[str] = []
        self.unread: set[str] = set()
        self.unfinished: set[str] = set()
        self._queued: list[asyncio.Task[None]] = []

    def add(self, *names: str) -> None:
        """Connect from the address that stands before the hyphen of each name."""
        for name in names:
            address, close, has_unread = name.partition("-")[0], partial(self._close, name), partial(self._unread, name)
            self.open[name] = self.all.add(address, close, has_unread)

    async def begin(self, *names: str) -> None:
        """Connect, and send the first byte; return when those had their turn for which there were places."""
        for name in names:
            self.add(name)
            self._queued.append(asyncio.create_task(self._begin(name)))
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    def assign(self, name: str, node: str) -> None:
        self.all.assign(self.open[name], node)

    def _close(self, name: str, reason: str) -> None:
        self.closed.append(name)

    def _unread(self, name: str) -> bool:
        return name in self.unread

    async def _begin(self, name: str) -> None:
        await self.all.wait_for_turn(self.open[name])
        if name not in self.unfinished:
            self.all.establish(self.open[name])
        self.begun.append(name)


class TestAcceptedConnections:
    def test_of_too_many_that_send_nothing_the_oldest_is_closed_at_the_address_with_most(self) -> None:
        clients = Clients()
        clients.add("10.0.0.1-a", "10.0.0.2-a", "10.0.0.2-b", "10.0.0.3-a")
        assert clients.closed == []
        clients.add("10.0.0.4-a", "10.0.0.5-a")
        assert clients.closed == ["10.0.0.2-a", "10.0.0.1-a"]

    @in_loop
    async def test_who_sends_nothing_does_not_displace_who_has_begun(self) -> None:
        clients = Clients()
        await clients.begin("10.0.0.1-a", "10.0.0.1-b", "10.0.0.1-c", "10.0.0.1-d")
        assert clients.begun == ["10.0.0.1-a", "10.0.0.1-b", "10.0.0.1-c"]
        clients.add(*(f"10.0.0.2-{n}" for n in range(20)))
        assert clients.closed == [f"10.0.0.2-{n}" for n in range(17)]

    @in_loop
    async def test_a_place_is_free_again_after_its_time_and_in_order_of_arrival(self) -> None:
        clients = Clients()
        await clients.begin(*(f"10.0.0.1-{n}" for n in range(5)))
        assert (clients.begun, clients.closed) == ([f"10.0.0.1-{n}" for n in range(3)], [])
        await asyncio.sleep(WAIT)
        assert (clients.begun, clients.closed) == ([f"10.0.0.1-{n}" for n in range(5)], ["10.0.0.1-0", "10.0.0.1-1"])

    @in_loop
    async def test_a_connection_is_not_closed_while_no_other_needs_its_place(self) -> None:
        clients = Clients()
        await clients.begin("10.0.0.1-a", "10.0.0.1-b", "10.0.0.1-c")
        await asyncio.sleep(2 * SECONDS)
        assert clients.closed == []

    @in_loop
    async def test_an_authenticated_connection_makes_room(self) -> None:
        clients = Clients()
        await clients.begin("10.0.0.1-a", "10.0.0.1-b", "10.0.0.1-c", "10.0.0.1-d")
        clients.assign("10.0.0.1-b", "arm")
        await asyncio.sleep(0)
        assert (clients.begun[3:], clients.closed) == (["10.0.0.1-d"], [])

    @in_loop
    async def test_what_was_not_read_yet_counts_for_a_connection(self) -> None:
        """The gateway itself may be late; a request that has arrived is not refused for it."""
        clients = Clients()
        clients.unread = {"10.0.0.1-a", "10.0.0.1-c"}
        await clients.begin(*(f"10.0.0.1-{n}" for n in "abcd"))
        await asyncio.sleep(WAIT)
        assert clients.closed == ["10.0.0.1-b"]
        clients.unread = set()
        await clients.begin("10.0.0.1-e")
        await asyncio.sleep(WAIT)
        assert clients.closed == ["10.0.0.1-b", "10.0.0.1-a"]

    @in_loop
    async def test_a_handshake_has_more_time_than_a_request_after_it(self) -> None:
        clients = Clients()
        clients.unfinished = {"10.0.0.1-a", "10.0.0.1-b", "10.0.0.1-d"}
        await clients.begin(*(f"10.0.0.1-{n}" for n in "abcde"))
        await asyncio.sleep(WAIT)
        assert clients.closed == ["10.0.0.1-c"]
        await asyncio.sleep(2 * WAIT)
        assert clients.closed == ["10.0.0.1-c", "10.0.0.1-a"]

    @in_loop
    async def test_an_address_with_fewer_places_comes_first(self) -> None:
        clients = Clients()
        await clients.begin("10.0.0.1-a", "10.0.0.1-b", "10.0.0.1-c", "10.0.0.1-d", "10.0.0.2-a")
        await asyncio.sleep(WAIT)
        assert clients.begun[3:] == ["10.0.0.2-a", "10.0.0.1-d"]
        assert clients.closed == ["10.0.0.1-a", "10.0.0.1-b"]

    @in_loop
    async def test_places_of_a_nodes_address_are_not_taken_by_others(self) -> None:
        clients = Clients()
        await clients.begin("10.0.0.1-a")
        clients.assign("10.0.0.1-a", "arm")
        await clients.begin("10.0.1.1-a", "10.0.1.2-a", "10.0.1.3-a", "10.0.1.4-a")
        await clients.begin("10.0.0.1-b", "10.0.0.1-c", "10.0.0.1-d")
        assert clients.begun[-2:] == ["10.0.0.1-b", "10.0.0.1-c"]  # the third one waits as others do
        await asyncio.sleep(WAIT)
        assert not [name for name in clients.closed if name.startswith("10.0.0.1")]

    @in_loop
    async def test_reserved_places_follow_a_node_to_its_last_two_addresses(self) -> None:
        clients = Clients()
        for i in range(1, 4):
            await clients.begin(f"10.0.0.{i}-a")
            clients.assign(f"10.0.0.{i}-a", "arm")
        await clients.begin("10.0.1.1-a", "10.0.1.2-a", "10.0.1.3-a")
        await clients.begin("10.0.0.1-b", "10.0.0.2-b", "10.0.0.3-b")
        assert {"10.0.0.1-b", "10.0.0.2-b", "10.0.0.3-b"} & {*clients.begun} == {"10.0.0.2-b", "10.0.0.3-b"}

    def test_a_node_with_too_many_loses_its_own_oldest(self) -> None:
        clients = Clients()
        clients.add("10.0.0.9-a")
        clients.assign("10.0.0.9-a", "other")
        for name in "abc":
            clients.add(f"10.0.0.1-{name}")
            clients.assign(f"10.0.0.1-{name}", "arm")
        assert clients.closed == ["10.0.0.1-a"]

    @in_loop
    async def test_a_removed_connection_gives_its_place_back(self) -> None:
        clients = Clients()
        for i in range(50):
            name = f"10.0.0.1-{i}"
            if i % 3 == 0:
                clients.add(name)
            else:
                await clients.begin(name)
            if i % 3 == 1:
                clients.assign(name, "arm")
            clients.all.remove(clients.open[name])
            clients.all.remove(clients.open[name])  # twice is once
        assert clients.closed == []

    def test_ipv6_addresses_of_one_network_count_together(self) -> None:
        clients = Clients()
        clients.add("2001:db8::1-a", "2001:db8:0:1::-a", "2001:db8:0:0:9::-a", "2001:db8:0:2::-a", "2001:db8::3-a")
        assert clients.closed == ["2001:db8::1-a"]


def test_warnings_are_limited_by_the_minute_and_counted() -> None:
    lines: list[str] = []
    now = 0.0
    quota = LogQuota(2, lambda: now)
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="WARNING")
    try:
        for i in range(5):
            quota.warning(f"{{rejected}} {i}")
        now = 61.0
        quota.warning("later")
    finally:
        logger.remove(sink)
    assert lines == ["{rejected} 0", "{rejected} 1", "3 more warnings like these in the last minute", "later"]


FEW = ConnectionLimits(
    accepted=20,
    waiting=6,
    silent_seconds=0.2,
    unfinished_seconds=0.5,
    reserved_per_address=4,
    per_node=3,
    handshake_seconds=300,
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with running_gateway(tmp_path_factory.mktemp("gateway"), FEW) as found:
        yield found


def is_closed(connection: socket.socket) -> bool:
    """Whether the other end has closed a connection on which it sends nothing by itself."""
    connection.settimeout(0.01)
    try:
        return connection.recv(1) == b""
    except (TimeoutError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True


class TestFlood:
    def test_connections_that_say_nothing_are_limited_before_their_handshake(self, gateway: RunningGateway) -> None:
        """Places were counted after the handshake only; who sent nothing took as many as the system allows."""
        with ExitStack() as stack:
            silent = [stack.enter_context(gateway.connect_tcp("127.0.0.2")) for _ in range(30)]
            wait_until(lambda: sum(map(is_closed, silent)) >= 10)
            assert [n for n, connection in enumerate(silent) if is_closed(connection) and n > 11] == []
            assert gateway.post(body=b"honest") == 200

    def test_a_node_gets_in_from_the_address_of_a_flood(self, gateway: RunningGateway) -> None:
        """Silent and half-open connections, and such that finish their handshake, from the address of the node."""
        assert gateway.post(body=b"honest") == 200
        with ExitStack() as stack:
            half = [stack.enter_context(gateway.connect_tcp()) for _ in range(12)]
            for connection in half:
                connection.sendall(b"\x16\x03\x01\x02")
            _silent = [stack.enter_context(gateway.connect_tcp()) for _ in range(30)]
            idle = [stack.enter_context(gateway.connect()) for _ in range(12)]
            assert [gateway.post(body=b"honest") for _ in range(10)] == [200] * 10
            assert sum(not is_closed(connection) for connection in (*half, *idle)) <= FEW.waiting + 4

    def test_a_node_gets_in_while_many_addresses_take_all_places(self, gateway: RunningGateway) -> None:
        with ExitStack() as stack:
            others = [stack.enter_context(gateway.connect_tcp(f"127.0.1.{i}")) for i in range(1, 61)]
            idle = [stack.enter_context(gateway.connect(f"127.0.2.{i}")) for i in range(1, 11)]
            assert [gateway.post(body=b"honest") for _ in range(10)] == [200] * 10
            assert sum(not is_closed(connection) for connection in others) <= FEW.accepted
            assert sum(not is_closed(connection) for connection in idle) <= FEW.waiting

    def test_an_open_connection_of_a_node_stays(self, gateway: RunningGateway) -> None:
        with ExitStack() as stack:
            node = stack.enter_context(gateway.connect())
            assert status_of(node, gateway.request()) == 200
            for i in range(1, 61):
                stack.enter_context(gateway.connect_tcp(f"127.0.3.{i}"))
            assert status_of(node, gateway.request()) == 200

    def test_a_node_takes_places_of_its_own_only(self, gateway: RunningGateway) -> None:
        private, public = make_node_key()
        (gateway.folder / "nodes" / "other.pub").write_bytes(public)
        other_key = serialization.load_ssh_private_key(private, None)
        with ExitStack() as stack:
            other = stack.enter_context(gateway.connect("127.0.0.5"))
            assert status_of(other, gateway.request(headers=gateway.signed(other_key))) == 200
            own = [stack.enter_context(gateway.connect()) for _ in range(3)]
            assert [status_of(c, gateway.request()) for c in own] == [200] * 3
            own.append(stack.enter_context(gateway.connect()))
            assert status_of(own[-1], gateway.request()) == 200
            wait_until(lambda: is_closed(own[0]))
            assert [status_of(c, gateway.request()) for c in own[1:]] == [200] * 3
            assert status_of(other, gateway.request(headers=gateway.signed(other_key))) == 200


def test_a_handshake_has_a_time_limit(tmp_path: Path) -> None:
    limits = ConnectionLimits(handshake_seconds=0.3)
    with running_gateway(tmp_path, limits) as gateway, gateway.connect_tcp() as silent, gateway.connect_tcp() as half:
        half.sendall(b"\x16\x03\x01\x02")
        wait_until(lambda: is_closed(silent) and is_closed(half))
