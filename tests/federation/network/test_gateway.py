"""Gateway: requests that it forwards, and requests that it rejects."""

import asyncio
import hashlib
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from running_gateway import PUSH, RunningGateway, reachable, running_gateway

from zk0.federation.flower.api_client import Endpoint
from zk0.federation.network.certificate_authority import CertificateAuthority, make_node_key, public_key_pem
from zk0.federation.network.enrolled_nodes import EnrolledNodes
from zk0.federation.network.flower_commands import free_port
from zk0.federation.network.gateway import ALLOWED_PATHS, Gateway, GatewaySettings

ANSWER = "/v1/fleet/push-messages"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with running_gateway(tmp_path_factory.mktemp("gateway")) as found:
        yield found


class TestEnrolledNodes:
    def test_a_request_is_forwarded_with_a_few_headers_and_its_body(self, gateway: RunningGateway) -> None:
        body = bytes(range(256)) * 5000
        gateway.superlink.requests.clear()
        headers = {
            **gateway.signed(),
            "content-type": "application/protobuf",
            "cookie": "c",
            "x-forwarded-for": "1.2.3.4",
        }
        assert gateway.post(headers=headers, body=body) == 200
        ((target, headers, digest),) = gateway.superlink.requests
        assert (target, digest) == (PUSH.encode(), hashlib.sha256(body).hexdigest())
        names = {"host", "content-type", "content-length", "flwr-public-key", "flwr-signature", "flwr-timestamp"}
        assert headers.keys() == {name.encode() for name in names}
        assert headers[b"host"] == f"127.0.0.1:{gateway.superlink.port}".encode()

    def test_every_path_of_a_supernode_but_registering(self, gateway: RunningGateway) -> None:
        from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

        fleet = {path for _, path in PROTOBUF_REQUEST_TYPES if path.startswith("/v1/fleet/")}
        assert {path.decode() for path in ALLOWED_PATHS} == fleet - {
            "/v1/fleet/register-node",
            "/v1/fleet/unregister-node",
        }
        assert [gateway.post(path.decode()) for path in sorted(ALLOWED_PATHS)] == [200] * len(ALLOWED_PATHS)

    def test_no_answer_in_the_name_of_another_node(self, gateway: RunningGateway) -> None:
        """A SuperLink compares the node in the request with its key, but not with the sender of the answer."""
        from flwr.proto.fleet_pb2 import PushMessagesRequest
        from flwr.proto.message_pb2 import Message, Metadata
        from flwr.proto.node_pb2 import Node

        def answer(*senders: int) -> bytes:
            messages = [Message(metadata=Metadata(src_node_id=sender, dst_node_id=1)) for sender in senders]
            return PushMessagesRequest(node=Node(node_id=7), messages_list=messages).SerializeToString()

        gateway.superlink.requests.clear()
        for body in (answer(8), answer(7, 8), answer(8, 7), answer(0), answer(7) + answer(8), b"\xff" * 7):
            assert gateway.post(ANSWER, body=body) == 403
        assert gateway.superlink.requests == []
        assert [gateway.post(ANSWER, body=body) for body in (answer(7), answer(7, 7), answer())] == [200] * 3
        digests = [hashlib.sha256(body).hexdigest() for body in (answer(7), answer(7, 7), answer())]
        assert [digest for _, _, digest in gateway.superlink.requests] == digests

    def test_many_requests_on_one_connection(self, gateway: RunningGateway) -> None:
        head = "".join(f"{name}: {value}\r\n" for name, value in gateway.signed().items())
        with gateway.connect() as connection:
            for size in (0, 70_000, 3):
                lines = f"POST {PUSH} HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n{head}\r\n"
                connection.sendall(lines.encode() + bytes(size))
                answer = b""
                while not answer.endswith(hashlib.sha256(bytes(size)).hexdigest().encode()):
                    answer += connection.recv(65536)
                assert answer.startswith(b"HTTP/1.1 200")
                assert b"flwr-x: y" in answer
                assert b"secret" not in answer

    def test_a_slow_node_does_not_delay_others(self, gateway: RunningGateway) -> None:
        body = bytes(200)
        head = "".join(f"{name}: {value}\r\n" for name, value in gateway.signed().items())
        with gateway.connect() as slow:
            slow.sendall(f"POST {PUSH} HTTP/1.1\r\nhost: x\r\ncontent-length: 200\r\n{head}\r\n".encode())
            for piece in range(20):
                slow.sendall(body[piece * 10 : piece * 10 + 10])
                assert gateway.post(body=b"quick") == 200
            assert slow.recv(65536).startswith(b"HTTP/1.1 200")
        assert hashlib.sha256(body).hexdigest() in [digest for _, _, digest in gateway.superlink.requests]


class TestRejectedRequests:
    def test_a_request_without_an_enrolled_nodes_signature(self, gateway: RunningGateway) -> None:
        before = gateway.superlink.connections
        unknown = ec.generate_private_key(ec.SECP384R1())
        ours, theirs = gateway.signed(), gateway.signed(unknown)
        cases = {
            "no key": {},
            "a key that is not enrolled": theirs,
            "the key of another": {**theirs, "flwr-public-key": ours["flwr-public-key"]},
            "a signature of yesterday": gateway.signed(age_seconds=86_400),
            "a signature of tomorrow": gateway.signed(age_seconds=-3600),
            "another time than was signed": {**ours, "flwr-timestamp": datetime.now(UTC).isoformat()},
            "no time": {**ours, "flwr-timestamp": "now"},
            "a time without a zone": {**ours, "flwr-timestamp": "2026-01-01T00:00:00"},
            "no base64": {**ours, "flwr-public-key": "%%%"},
            "no text": {**ours, "flwr-timestamp": "\u00fc"},
            "twice": {**ours, "Flwr-Public-Key": theirs["flwr-public-key"]},
        }
        assert {case: gateway.post(headers=headers) for case, headers in cases.items()} == dict.fromkeys(cases, 401)
        assert gateway.superlink.connections == before

    def test_a_body_is_not_read_before_its_sender_is_authenticated(self, gateway: RunningGateway) -> None:
        head = f"POST {PUSH} HTTP/1.1\r\nhost: x\r\ncontent-length: 26000000\r\n\r\n"
        assert gateway.raw(head.encode()) == 401

    def test_a_revoked_node_is_rejected_at_once(self, gateway: RunningGateway) -> None:
        private, public = make_node_key()
        file, key = gateway.folder / "nodes" / "other.pub", serialization.load_ssh_private_key(private, None)
        assert gateway.post(headers=gateway.signed(key)) == 401
        file.write_bytes(public)
        assert gateway.post(headers=gateway.signed(key)) == 200
        file.unlink()
        assert gateway.post(headers=gateway.signed(key)) == 401
        assert public_key_pem(public).startswith(b"-----BEGIN PUBLIC KEY-----")

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
    def test_every_other_path_however_it_is_written(self, gateway: RunningGateway, path: str) -> None:
        before = gateway.superlink.connections
        assert gateway.post(path) == 404
        assert gateway.superlink.connections == before

    def test_other_kinds_of_requests(self, gateway: RunningGateway) -> None:
        before = gateway.superlink.connections
        head = "".join(f"{name}: {value}\r\n" for name, value in gateway.signed().items())
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
            f"{start}content-length: 26000001\r\n\r\n".encode(): {413},
            f"{start.replace('push-object', 'push-messages')}content-length: 4000001\r\n\r\n".encode(): {413},
            f"{start}content-length: -1\r\n\r\n".encode(): {400},
            f"{start}x: a\r\n folded\r\ncontent-length: 70000000\r\n\r\n".encode(): {400, 413},
            f"{start}x y: a\r\n\r\n".encode(): {400},
            f"{start}x: a\x00b\r\n\r\n".encode(): {400},
            f"POST /v1/fleet/push-object\x00 HTTP/1.1\r\nhost: x\r\n{head}\r\n".encode(): {400},
            f"{start}x: {'a' * 20_000}\r\n\r\n".encode(): {431, None},
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": {400, 404},
            b"\x16\x03\x01\x02\x00\x01": {400},
        }
        assert {data: gateway.raw(data) for data in cases if gateway.raw(data) not in cases[data]} == {}
        assert gateway.superlink.connections == before

    @pytest.mark.parametrize(
        "lines",
        [
            "content-length: 0, 40",
            "content-length: +5",
            f"content-length: {'9' * 20}",
            f"content-length: {'9' * 5000}",
            "content-length: 0\r\ncontent-length: 40",
            "transfer-encoding : chunked\r\ncontent-length: 0",
            "transfer-encoding: xchunked\r\ncontent-length: 0",
            "content-length: 0\r\ncontent-length : 3",
            "flwr-x: a\rb: c\r\ncontent-length: 0",
            f"x: {'a' * 1_000_000}",
            "\r\n".join(f"x{i}: a" for i in range(10_000)),
        ],
        ids=lambda lines: lines[:40],
    )
    def test_lengths_and_headers_that_are_read_in_two_ways(self, gateway: RunningGateway, lines: str) -> None:
        before = gateway.superlink.connections
        head = "".join(f"{name}: {value}\r\n" for name, value in gateway.signed().items())
        request = f"POST {PUSH} HTTP/1.1\r\nhost: x\r\n{head}{lines}\r\n\r\n".encode()
        assert gateway.raw(request) in (400, 413, 431, 501, None)
        assert gateway.superlink.connections == before

    @pytest.mark.parametrize("stamp", ["9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00+23:59", "\u0661", "1e999"])
    def test_times_at_the_ends_of_the_calendar(self, gateway: RunningGateway, stamp: str) -> None:
        assert gateway.post(headers={**gateway.signed(), "flwr-timestamp": stamp}) == 401

    def test_a_header_of_another_spelling_is_no_key(self, gateway: RunningGateway) -> None:
        headers = gateway.signed()
        headers["flwr_public_key"] = headers.pop("flwr-public-key")
        assert gateway.post(headers=headers) == 401

    def test_no_request_is_hidden_in_another_one(self, gateway: RunningGateway) -> None:
        """Bytes after a body are the next request, to which the same rules apply."""
        gateway.superlink.requests.clear()
        head = "".join(f"{name}: {value}\r\n" for name, value in gateway.signed().items())
        first = f"POST {PUSH} HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n{head}\r\nabc"
        hidden = f"POST /v1/control/start-run HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n{head}\r\n"
        answer = b""
        with gateway.connect() as connection:
            connection.sendall((first + hidden).encode())
            while data := connection.recv(65536):
                answer += data
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"404"]
        assert [target for target, _, _ in gateway.superlink.requests] == [PUSH.encode()]


class TestTls:
    def test_plain_text_gets_no_answer(self, gateway: RunningGateway) -> None:
        with socket.create_connection(("127.0.0.1", gateway.port), 10) as connection:
            connection.sendall(f"POST {PUSH} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            with suppress(ConnectionResetError):
                assert b"HTTP" not in connection.recv(65536)

    def test_a_node_rejects_another_authority(self, gateway: RunningGateway, tmp_path: Path) -> None:
        CertificateAuthority(tmp_path).create()
        context = ssl.create_default_context(cafile=tmp_path / "ca.crt")
        with (
            socket.create_connection(("127.0.0.1", gateway.port), 10) as connection,
            pytest.raises(ssl.SSLCertVerificationError),
        ):
            context.wrap_socket(connection, server_hostname="127.0.0.1")

    def test_a_node_rejects_another_host_name(self, gateway: RunningGateway) -> None:
        context = ssl.create_default_context(cafile=gateway.authority)
        with (
            socket.create_connection(("127.0.0.1", gateway.port), 10) as connection,
            pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"),
        ):
            context.wrap_socket(connection, server_hostname="elsewhere.example")

    def test_old_tls_is_rejected(self, gateway: RunningGateway) -> None:
        context = ssl.create_default_context(cafile=gateway.authority)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with socket.create_connection(("127.0.0.1", gateway.port), 10) as connection, pytest.raises(ssl.SSLError):
            context.wrap_socket(connection, server_hostname="127.0.0.1")

    def test_a_listener_on_the_way_reads_nothing(self, gateway: RunningGateway) -> None:
        recorded, listener = bytearray(), socket.create_server(("127.0.0.1", 0))

        def relay() -> None:
            node, _ = listener.accept()
            with socket.create_connection(("127.0.0.1", gateway.port)) as there, node:
                ways = [threading.Thread(target=copy, args=pair) for pair in ((node, there), (there, node))]
                for way in ways:
                    way.start()
                for way in ways:
                    way.join()

        def copy(source: socket.socket, target: socket.socket) -> None:
            while data := source.recv(65536):
                recorded.extend(data)
                target.sendall(data)
            with suppress(OSError):
                target.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=relay)
        thread.start()
        signed, body = gateway.signed(), b"weights of a private arm" * 100
        tapped = replace(gateway, port=listener.getsockname()[1])
        assert tapped.post(headers=signed, body=body) == 200
        thread.join(10)
        listener.close()
        assert gateway.superlink.requests[-1][2] == hashlib.sha256(body).hexdigest()
        assert len(recorded) > len(body)
        for secret in (b"private arm", b"push-object", b"flwr-", signed["flwr-signature"].encode(), b"HTTP/1.1"):
            assert secret not in recorded


class TestSuperLink:
    def test_while_it_is_unavailable_the_status_is_503(self, gateway: RunningGateway) -> None:
        nodes = EnrolledNodes(gateway.folder / "nodes")
        settings = GatewaySettings(
            host="127.0.0.1",
            port=free_port(),
            certificate=gateway.folder / "gateway.crt",
            key=gateway.folder / "gateway.key",
            superlink=Endpoint(address=f"127.0.0.1:{free_port()}", ca_certificate=gateway.authority),
            nodes_folder=gateway.folder / "nodes",
        )

        async def status() -> int | None:
            serving = asyncio.create_task(Gateway(settings, nodes).serve())
            other = replace(gateway, port=settings.port)
            while not await asyncio.to_thread(reachable, settings.port):
                await asyncio.sleep(0.02)
            try:
                return await asyncio.to_thread(other.post)
            finally:
                serving.cancel()

        assert asyncio.run(status()) == 503

    def test_an_incomplete_response_is_not_completed(self, gateway: RunningGateway) -> None:
        gateway.superlink.ends_early = True
        answer = b""
        try:
            with gateway.connect() as connection:
                head = "".join(f"{name}: {value}\r\n" for name, value in gateway.signed().items())
                connection.sendall(f"POST {PUSH} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n{head}\r\n".encode())
                while data := connection.recv(65536):
                    answer += data
        finally:
            gateway.superlink.ends_early = False
        assert b"content-length: 900" in answer
        assert len(answer.partition(b"\r\n\r\n")[2]) < 900
