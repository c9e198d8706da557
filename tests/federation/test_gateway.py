"""The one open door: what it lets through, and what it does not."""

import asyncio
import base64
import hashlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import h11
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from zk0.federation.api import Endpoint
from zk0.federation.authority import Authority, make_node_key, wire_key
from zk0.federation.gateway import ALLOWED, Gateway, GatewaySettings
from zk0.federation.guests import Guests
from zk0.federation.processes import free_port

PUSH = "/v1/fleet/push-object"


@dataclass
class Behind:
    """What stands behind the gateway: notes every request and answers the digest of its body."""

    certificate: tuple[Path, Path]
    port: int = 0
    seen: list[tuple[bytes, dict[bytes, bytes], str]] = field(default_factory=list)
    connections: int = 0
    ends_early: bool = False

    async def serve(self, ready: threading.Event) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.certificate)
        server = await asyncio.start_server(self._answer, "127.0.0.1", self.port, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        async with server:
            await server.serve_forever()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        http, digest = h11.Connection(h11.SERVER), hashlib.sha256()
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                if not (data := await reader.read(65536)):
                    return
                http.receive_data(data)
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                digest.update(event.data)
        self.seen.append((request.target, dict(request.headers), digest.hexdigest()))
        body = digest.hexdigest().encode()
        head = [("content-length", "900" if self.ends_early else str(len(body))), ("server", "secret"), ("flwr-x", "y")]
        writer.write(http.send(h11.Response(status_code=200, headers=head)))
        writer.write(http.send(h11.Data(data=body)))
        await writer.drain()
        writer.close()


@dataclass
class Door:
    """A gateway with what stands behind it, and a node that is enrolled."""

    folder: Path
    authority: Path
    port: int
    behind: Behind
    key: Any

    def signed(self, key: Any = None, age_seconds: float = 0.0) -> dict[str, str]:
        """The headers that a SuperNode sends."""
        key, stamp = key or self.key, (datetime.now(UTC) - timedelta(seconds=age_seconds)).isoformat()
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        signature = key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
        return {
            "flwr-public-key": base64.b64encode(public).decode(),
            "flwr-signature": base64.b64encode(signature).decode(),
            "flwr-timestamp": stamp,
        }

    def connect(self) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=self.authority)
        return context.wrap_socket(socket.create_connection(("127.0.0.1", self.port), 10), server_hostname="127.0.0.1")

    def raw(self, data: bytes) -> int | None:
        """The status that some bytes are answered with; None where the door is shut without a word."""
        with self.connect() as connection:
            connection.sendall(data)
            try:
                head = connection.recv(65536)
            except OSError:
                return None
        return int(head.split()[1]) if head else None

    def post(self, path: str = PUSH, headers: Mapping[str, str] | None = None, body: bytes = b"") -> int | None:
        """The status that a request is answered with."""
        headers = self.signed() if headers is None else headers
        lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return self.raw("\r\n".join([*lines, "", ""]).encode() + body)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("door")
    (folder / "nodes").mkdir()
    authority = Authority(folder)
    authority.make()
    private, public = make_node_key()
    (folder / "nodes" / "arm.pub").write_bytes(public)
    behind, ready = Behind(authority.sign("superlink", ["127.0.0.1"])), threading.Event()
    certificate, key = authority.sign("gateway", ["127.0.0.1", "localhost"])
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    tasks = [asyncio.run_coroutine_threadsafe(behind.serve(ready), loop)]
    assert ready.wait(10)
    port = free_port()
    settings = GatewaySettings(
        host="127.0.0.1",
        port=port,
        certificate=certificate,
        key=key,
        superlink=Endpoint(address=f"127.0.0.1:{behind.port}", authority=authority.certificate),
        guests=folder / "nodes",
    )
    tasks.append(asyncio.run_coroutine_threadsafe(Gateway(settings, Guests(settings.guests)).serve(), loop))
    found = Door(folder, authority.certificate, port, behind, serialization.load_ssh_private_key(private, None))
    until(lambda: reachable(port))
    yield found
    for task in tasks:
        task.cancel()
    asyncio.run_coroutine_threadsafe(drained(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


async def drained() -> None:
    if left := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in left:  # of connections that are kept open
            task.cancel()
        await asyncio.wait(left, timeout=5)


def reachable(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def until(holds: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class TestNodes:
    def test_a_request_passes_whole_and_nothing_of_the_way_back_but_the_answer(self, door: Door) -> None:
        body = bytes(range(256)) * 5000
        door.behind.seen.clear()
        headers = {**door.signed(), "content-type": "application/protobuf", "cookie": "c", "x-forwarded-for": "1.2.3.4"}
        assert door.post(headers=headers, body=body) == 200
        ((target, passed, digest),) = door.behind.seen
        assert (target, digest) == (PUSH.encode(), hashlib.sha256(body).hexdigest())
        names = {"host", "content-type", "content-length", "flwr-public-key", "flwr-signature", "flwr-timestamp"}
        assert passed.keys() == {name.encode() for name in names}
        assert passed[b"host"] == f"127.0.0.1:{door.behind.port}".encode()

    def test_every_call_of_a_supernode_but_registering(self, door: Door) -> None:
        from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

        fleet = {path for _, path in PROTOBUF_REQUEST_TYPES if path.startswith("/v1/fleet/")}
        assert {path.decode() for path in ALLOWED} == fleet - {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
        assert [door.post(path.decode()) for path in sorted(ALLOWED)] == [200] * len(ALLOWED)

    def test_many_requests_on_one_connection(self, door: Door) -> None:
        head = "".join(f"{name}: {value}\r\n" for name, value in door.signed().items())
        with door.connect() as connection:
            for size in (0, 70_000, 3):
                lines = f"POST {PUSH} HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n{head}\r\n"
                connection.sendall(lines.encode() + bytes(size))
                answer = b""
                while not answer.endswith(hashlib.sha256(bytes(size)).hexdigest().encode()):
                    answer += connection.recv(65536)
                assert answer.startswith(b"HTTP/1.1 200")
                assert b"flwr-x: y" in answer
                assert b"secret" not in answer

    def test_a_slow_node_is_waited_for_and_holds_nobody_up(self, door: Door) -> None:
        body = bytes(200)
        head = "".join(f"{name}: {value}\r\n" for name, value in door.signed().items())
        with door.connect() as slow:
            slow.sendall(f"POST {PUSH} HTTP/1.1\r\nhost: x\r\ncontent-length: 200\r\n{head}\r\n".encode())
            for piece in range(20):
                slow.sendall(body[piece * 10 : piece * 10 + 10])
                assert door.post(body=b"quick") == 200
            assert slow.recv(65536).startswith(b"HTTP/1.1 200")
        assert hashlib.sha256(body).hexdigest() in [digest for _, _, digest in door.behind.seen]


class TestStrangers:
    def test_who_is_not_enrolled_is_nobody(self, door: Door) -> None:
        before = door.behind.connections
        stranger = ec.generate_private_key(ec.SECP384R1())
        ours, theirs = door.signed(), door.signed(stranger)
        cases = {
            "no key": {},
            "a key that is not enrolled": theirs,
            "the key of another": {**theirs, "flwr-public-key": ours["flwr-public-key"]},
            "a signature of yesterday": door.signed(age_seconds=86_400),
            "a signature of tomorrow": door.signed(age_seconds=-3600),
            "another time than was signed": {**ours, "flwr-timestamp": datetime.now(UTC).isoformat()},
            "no time": {**ours, "flwr-timestamp": "now"},
            "a time without a zone": {**ours, "flwr-timestamp": "2026-01-01T00:00:00"},
            "no base64": {**ours, "flwr-public-key": "%%%"},
            "no text": {**ours, "flwr-timestamp": "\u00fc"},
            "twice": {**ours, "Flwr-Public-Key": theirs["flwr-public-key"]},
        }
        assert {case: door.post(headers=headers) for case, headers in cases.items()} == dict.fromkeys(cases, 401)
        assert door.behind.connections == before

    def test_a_body_is_not_read_before_its_sender_is_known(self, door: Door) -> None:
        head = f"POST {PUSH} HTTP/1.1\r\nhost: x\r\ncontent-length: 60000000\r\n\r\n"
        assert door.raw(head.encode()) == 401

    def test_a_node_that_is_revoked_is_out_at_once(self, door: Door) -> None:
        private, public = make_node_key()
        file, key = door.folder / "nodes" / "other.pub", serialization.load_ssh_private_key(private, None)
        assert door.post(headers=door.signed(key)) == 401
        file.write_bytes(public)
        assert door.post(headers=door.signed(key)) == 200
        file.unlink()
        assert door.post(headers=door.signed(key)) == 401
        assert wire_key(public).startswith(b"-----BEGIN PUBLIC KEY-----")

    @pytest.mark.parametrize(
        "path",
        [
            "/v1/control/start-run",
            "/v1/control/register-node",
            "/v1/runtime/acquire-task",
            "/v1/fleet/register-node",
            "/v1/fleet/unregister-node",
            "/v1/fleet/../control/start-run",
            "/v1/fleet/push-object/../../control/start-run",
            "/v1/fleet/%2e%2e/control/start-run",
            "/v1/fleet/..%2fcontrol/start-run",
            "/v1/fleet%2fpush-object",
            "//v1/fleet/push-object",
            "/v1//fleet/push-object",
            "/v1/fleet/push-object/",
            "/v1/fleet/push-object?x=1",
            "/v1/fleet/push-object;x",
            "/V1/FLEET/PUSH-OBJECT",
            "/v1/fleet/push-objec%74",
            "http://127.0.0.1/v1/fleet/push-object",
            "https://127.0.0.1/v1/control/start-run",
            "/",
            "*",
            "/health",
            "/docs",
            "/openapi.json",
        ],
    )
    def test_no_other_door_however_it_is_called(self, door: Door, path: str) -> None:
        before = door.behind.connections
        assert door.post(path) == 404
        assert door.behind.connections == before

    def test_no_other_kind_of_request(self, door: Door) -> None:
        before = door.behind.connections
        head = "".join(f"{name}: {value}\r\n" for name, value in door.signed().items())
        start = f"POST {PUSH} HTTP/1.1\r\nhost: x\r\n{head}"
        cases: dict[bytes, set[int | None]] = {
            f"GET {PUSH} HTTP/1.1\r\nhost: x\r\n{head}\r\n".encode(): {405},
            f"CONNECT 127.0.0.1:80 HTTP/1.1\r\nhost: x\r\n{head}\r\n".encode(): {404},
            f"OPTIONS * HTTP/1.1\r\nhost: x\r\n{head}\r\n".encode(): {404},
            f"POST {PUSH} HTTP/1.0\r\n{head}content-length: 0\r\n\r\n".encode(): {405},
            f"{start}upgrade: websocket\r\nconnection: upgrade\r\n\r\n".encode(): {400},
            f"{start}upgrade: h2c\r\nhttp2-settings: x\r\n\r\n".encode(): {400},
            f"{start}expect: 100-continue\r\ncontent-length: 5\r\n\r\n".encode(): {400},
            f"{start}transfer-encoding: chunked\r\n\r\n0\r\n\r\n".encode(): {400},
            f"{start}content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".encode(): {400},
            f"{start}content-length: 4\r\ncontent-length: 5\r\n\r\n12345".encode(): {400},
            f"{start}content-length: 99999999999\r\n\r\n".encode(): {413},
            f"{start}content-length: -1\r\n\r\n".encode(): {400},
            f"{start}x: a\r\n folded\r\ncontent-length: 70000000\r\n\r\n".encode(): {400, 413},
            f"{start}x y: a\r\n\r\n".encode(): {400},
            f"{start}x: a\x00b\r\n\r\n".encode(): {400},
            f"POST /v1/fleet/push-object\x00 HTTP/1.1\r\nhost: x\r\n{head}\r\n".encode(): {400},
            f"{start}x: {'a' * 20_000}\r\n\r\n".encode(): {431, None},
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": {400, 404},
            b"\x16\x03\x01\x02\x00\x01": {400},
        }
        assert {data: door.raw(data) for data in cases if door.raw(data) not in cases[data]} == {}
        assert door.behind.connections == before

    def test_nothing_hides_behind_a_request(self, door: Door) -> None:
        """What follows a body is the next request, and is held to the same rules."""
        door.behind.seen.clear()
        head = "".join(f"{name}: {value}\r\n" for name, value in door.signed().items())
        first = f"POST {PUSH} HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n{head}\r\nabc"
        hidden = f"POST /v1/control/start-run HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n{head}\r\n"
        answer = b""
        with door.connect() as connection:
            connection.sendall((first + hidden).encode())
            while data := connection.recv(65536):
                answer += data
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"404"]
        assert [target for target, _, _ in door.behind.seen] == [PUSH.encode()]


class TestTls:
    def test_plain_text_gets_no_answer(self, door: Door) -> None:
        with socket.create_connection(("127.0.0.1", door.port), 10) as connection:
            connection.sendall(f"POST {PUSH} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            with suppress(ConnectionResetError):
                assert b"HTTP" not in connection.recv(65536)

    def test_another_authority_is_not_believed(self, door: Door, tmp_path: Path) -> None:
        Authority(tmp_path).make()
        context = ssl.create_default_context(cafile=tmp_path / "ca.crt")
        with (
            socket.create_connection(("127.0.0.1", door.port), 10) as connection,
            pytest.raises(ssl.SSLCertVerificationError),
        ):
            context.wrap_socket(connection, server_hostname="127.0.0.1")

    def test_another_name_is_not_believed(self, door: Door) -> None:
        context = ssl.create_default_context(cafile=door.authority)
        with (
            socket.create_connection(("127.0.0.1", door.port), 10) as connection,
            pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"),
        ):
            context.wrap_socket(connection, server_hostname="elsewhere.example")

    def test_old_tls_is_refused(self, door: Door) -> None:
        context = ssl.create_default_context(cafile=door.authority)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with socket.create_connection(("127.0.0.1", door.port), 10) as connection, pytest.raises(ssl.SSLError):
            context.wrap_socket(connection, server_hostname="127.0.0.1")

    def test_who_listens_on_the_way_hears_nothing(self, door: Door) -> None:
        heard, listener = bytearray(), socket.create_server(("127.0.0.1", 0))

        def listen() -> None:
            node, _ = listener.accept()
            with socket.create_connection(("127.0.0.1", door.port)) as there, node:
                ways = [threading.Thread(target=copy, args=pair) for pair in ((node, there), (there, node))]
                for way in ways:
                    way.start()
                for way in ways:
                    way.join()

        def copy(source: socket.socket, target: socket.socket) -> None:
            while data := source.recv(65536):
                heard.extend(data)
                target.sendall(data)
            with suppress(OSError):
                target.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=listen)
        thread.start()
        signed, body = door.signed(), b"weights of a private arm" * 100
        tapped = Door(door.folder, door.authority, listener.getsockname()[1], door.behind, door.key)
        assert tapped.post(headers=signed, body=body) == 200
        thread.join(10)
        listener.close()
        assert door.behind.seen[-1][2] == hashlib.sha256(body).hexdigest()
        assert len(heard) > len(body)
        for secret in (b"private arm", b"push-object", b"flwr-", signed["flwr-signature"].encode(), b"HTTP/1.1"):
            assert secret not in heard


class TestSuperLink:
    def test_while_it_is_away_nodes_are_told_to_come_again(self, door: Door) -> None:
        away, door.behind.port = door.behind.port, 0
        guests = Guests(door.folder / "nodes")
        settings = GatewaySettings(
            host="127.0.0.1",
            port=free_port(),
            certificate=door.folder / "gateway.crt",
            key=door.folder / "gateway.key",
            superlink=Endpoint(address=f"127.0.0.1:{free_port()}", authority=door.authority),
            guests=door.folder / "nodes",
        )
        door.behind.port = away

        async def status() -> int | None:
            serving = asyncio.create_task(Gateway(settings, guests).serve())
            other = Door(door.folder, door.authority, settings.port, door.behind, door.key)
            while not await asyncio.to_thread(reachable, settings.port):
                await asyncio.sleep(0.02)
            try:
                return await asyncio.to_thread(other.post)
            finally:
                serving.cancel()

        assert asyncio.run(status()) == 503

    def test_an_answer_that_breaks_off_is_not_passed_on_as_whole(self, door: Door) -> None:
        door.behind.ends_early = True
        answer = b""
        try:
            with door.connect() as connection:
                head = "".join(f"{name}: {value}\r\n" for name, value in door.signed().items())
                connection.sendall(f"POST {PUSH} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n{head}\r\n".encode())
                while data := connection.recv(65536):
                    answer += data
        finally:
            door.behind.ends_early = False
        assert b"content-length: 900" in answer
        assert len(answer.partition(b"\r\n\r\n")[2]) < 900
