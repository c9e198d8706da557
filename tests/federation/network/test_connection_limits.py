"""Limits of the gateway's connections: which one is closed, and that enrolled nodes get through."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from loguru import logger
from running_gateway import RunningGateway, running_gateway, status_of
from waiting import wait_until

from zk0.federation.network.certificate_authority import make_node_key
from zk0.federation.network.connection_limits import AcceptedConnection, AcceptedConnections, ConnectionLimits, LogQuota

LIMITS = ConnectionLimits(waiting=4, waiting_per_address=3, reserved_per_address=2, per_node=2)


class Clients:
    """Connections by name; `closed` lists those that were closed because of a limit."""

    def __init__(self, limits: ConnectionLimits = LIMITS) -> None:
        self.all = AcceptedConnections(limits)
        self.closed: list[str] = []
        self.open: dict[str, AcceptedConnection] = {}

    def add(self, *names: str) -> None:
        """Connect from the address that stands before the hyphen of each name."""
        for name in names:
            self.open[name] = self.all.add(name.partition("-")[0], lambda _, name=name: self.closed.append(name))  # type: ignore[misc]

    def assign(self, name: str, node: str) -> None:
        self.all.assign(self.open[name], node)


class TestAcceptedConnections:
    def test_an_address_with_too_many_loses_its_oldest(self) -> None:
        clients = Clients()
        clients.add("10.0.0.1-a", "10.0.0.1-b", "10.0.0.1-c")
        assert clients.closed == []
        clients.add("10.0.0.1-d", "10.0.0.1-e")
        assert clients.closed == ["10.0.0.1-a", "10.0.0.1-b"]

    def test_with_too_many_in_total_the_address_with_most_loses_its_oldest(self) -> None:
        clients = Clients()
        clients.add("10.0.0.1-a", "10.0.0.2-a", "10.0.0.2-b", "10.0.0.3-a", "10.0.0.4-a")
        assert clients.closed == ["10.0.0.2-a"]
        clients.add("10.0.0.5-a")  # one of each address: the oldest
        assert clients.closed == ["10.0.0.2-a", "10.0.0.1-a"]

    def test_an_authenticated_connection_counts_for_its_node_only(self) -> None:
        clients = Clients()
        clients.add("10.0.0.1-a")
        clients.assign("10.0.0.1-a", "arm")
        clients.add(*(f"10.0.1.{i}-a" for i in range(20)))
        assert "10.0.0.1-a" not in clients.closed
        assert len(clients.closed) == 16

    def test_places_of_a_nodes_address_are_not_taken_by_others(self) -> None:
        clients = Clients()
        clients.add("10.0.0.1-a")
        clients.assign("10.0.0.1-a", "arm")
        clients.add("10.0.0.1-b", "10.0.0.1-c")
        clients.add(*(f"10.0.1.{i}-a" for i in range(20)))
        assert {name for name in clients.closed if name.startswith("10.0.0.1")} == set()
        clients.add("10.0.0.1-d")  # a third one counts like anybody's
        clients.add(*(f"10.0.2.{i}-a" for i in range(20)))
        assert [name for name in clients.closed if name.startswith("10.0.0.1")] == ["10.0.0.1-b"]

    def test_reserved_places_follow_a_node_to_its_last_two_addresses(self) -> None:
        clients = Clients()
        for i in range(1, 4):
            clients.add(f"10.0.0.{i}-a")
            clients.assign(f"10.0.0.{i}-a", "arm")
        clients.add("10.0.0.1-b", "10.0.0.2-b", "10.0.0.3-b", *(f"10.0.1.{i}-a" for i in range(20)))
        kept = {"10.0.0.1-b", "10.0.0.2-b", "10.0.0.3-b"} - set(clients.closed)
        assert kept == {"10.0.0.2-b", "10.0.0.3-b"}

    def test_a_node_with_too_many_loses_its_own_oldest(self) -> None:
        clients = Clients()
        clients.add("10.0.0.9-a")
        clients.assign("10.0.0.9-a", "other")
        for name in "abc":
            clients.add(f"10.0.0.1-{name}")
            clients.assign(f"10.0.0.1-{name}", "arm")
        assert clients.closed == ["10.0.0.1-a"]

    def test_a_removed_connection_gives_its_place_back(self) -> None:
        clients = Clients()
        for i in range(50):
            clients.add(f"10.0.0.1-{i}")
            if i % 2:
                clients.assign(f"10.0.0.1-{i}", "arm")
            clients.all.remove(clients.open[f"10.0.0.1-{i}"])
            clients.all.remove(clients.open[f"10.0.0.1-{i}"])  # twice is once
        assert clients.closed == []

    def test_ipv6_addresses_of_one_network_count_together(self) -> None:
        clients = Clients()
        clients.add("2001:db8::1-a", "2001:db8::2-a", "2001:db8:0:0:9::-a", "2001:db8:0:1::-a", "2001:db8::3-a")
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


FEW = ConnectionLimits(waiting=20, waiting_per_address=6, reserved_per_address=4, per_node=3, handshake_seconds=300)


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
            wait_until(lambda: sum(map(is_closed, silent)) == 24)
            assert not any(map(is_closed, silent[-6:]))
            assert gateway.post(body=b"honest") == 200

    def test_a_half_sent_handshake_counts_too(self, gateway: RunningGateway) -> None:
        with ExitStack() as stack:
            half = [stack.enter_context(gateway.connect_tcp("127.0.0.3")) for _ in range(12)]
            for connection in half:
                with suppress(OSError):
                    connection.sendall(b"\x16\x03\x01\x02")
            wait_until(lambda: sum(map(is_closed, half)) == 6)

    def test_a_node_gets_in_while_many_addresses_take_all_places(self, gateway: RunningGateway) -> None:
        with ExitStack() as stack:
            others = [stack.enter_context(gateway.connect_tcp(f"127.0.1.{i}")) for i in range(1, 61)]
            idle = [stack.enter_context(gateway.connect(f"127.0.2.{i}")) for i in range(1, 11)]
            assert [gateway.post(body=b"honest") for _ in range(10)] == [200] * 10
            assert sum(not is_closed(connection) for connection in (*others, *idle)) <= FEW.waiting

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
