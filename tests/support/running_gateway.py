"""A gateway in this process before a fake SuperLink, and the requests of an enrolled node."""

import asyncio
import base64
import hashlib
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import h11
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from waiting import wait_until

from zk0.federation.flower.api_client import Endpoint
from zk0.federation.network.certificate_authority import CertificateAuthority, make_node_key
from zk0.federation.network.connection_limits import ConnectionLimits
from zk0.federation.network.enrolled_nodes import EnrolledNodes
from zk0.federation.network.flower_commands import free_port
from zk0.federation.network.gateway import Gateway, GatewaySettings

PUSH = "/v1/fleet/push-object"
DEFAULT_LIMITS = ConnectionLimits()


@dataclass
class FakeSuperLink:
    """Stores every request and answers with the digest of its body."""

    certificate: tuple[Path, Path]
    port: int = 0
    requests: list[tuple[bytes, dict[bytes, bytes], str]] = field(default_factory=list)
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
        self.requests.append((request.target, dict(request.headers), digest.hexdigest()))
        body = digest.hexdigest().encode()
        head = [("content-length", "900" if self.ends_early else str(len(body))), ("server", "secret"), ("flwr-x", "y")]
        writer.write(http.send(h11.Response(status_code=200, headers=head)))
        writer.write(http.send(h11.Data(data=body)))
        await writer.drain()
        writer.close()


@dataclass
class RunningGateway:
    """A gateway with a fake SuperLink, and the key of an enrolled node."""

    folder: Path
    authority: Path
    port: int
    superlink: FakeSuperLink
    key: Any

    def signed(self, key: Any = None, age_seconds: float = 0.0) -> dict[str, str]:
        """Return the headers that a SuperNode sends."""
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

    def connect_tcp(self, source: str = "127.0.0.1") -> socket.socket:
        """Connect from an address of this machine, without TLS."""
        return socket.create_connection(("127.0.0.1", self.port), 10, source_address=(source, 0))

    def connect(self, source: str = "127.0.0.1") -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=self.authority)
        return context.wrap_socket(self.connect_tcp(source), server_hostname="127.0.0.1")

    def raw(self, data: bytes, source: str = "127.0.0.1") -> int | None:
        """Send bytes, and return the status of the response; None where the connection is closed without one."""
        with self.connect(source) as connection:
            return status_of(connection, data)

    def request(self, path: str = PUSH, headers: Mapping[str, str] | None = None, body: bytes = b"") -> bytes:
        """Return a request, by default one of the enrolled node."""
        headers = self.signed() if headers is None else headers
        lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body

    def post(self, path: str = PUSH, headers: Mapping[str, str] | None = None, body: bytes = b"") -> int | None:
        """Send a request, and return the status of the response."""
        return self.raw(self.request(path, headers, body))


@contextmanager
def running_gateway(folder: Path, limits: ConnectionLimits = DEFAULT_LIMITS) -> Iterator[RunningGateway]:
    """Run a gateway with one enrolled node, `arm`, in a thread of this process."""
    (folder / "nodes").mkdir()
    authority = CertificateAuthority(folder)
    authority.create()
    private, public = make_node_key()
    (folder / "nodes" / "arm.pub").write_bytes(public)
    superlink, ready = FakeSuperLink(authority.server_certificate("superlink", ["127.0.0.1"])), threading.Event()
    certificate, key = authority.server_certificate("gateway", ["127.0.0.1", "localhost"])
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    tasks = [asyncio.run_coroutine_threadsafe(superlink.serve(ready), loop)]
    assert ready.wait(10)
    port = free_port()
    settings = GatewaySettings(
        host="127.0.0.1",
        port=port,
        certificate=certificate,
        key=key,
        superlink=Endpoint(address=f"127.0.0.1:{superlink.port}", ca_certificate=authority.certificate),
        nodes_folder=folder / "nodes",
        limits=limits,
    )
    tasks.append(
        asyncio.run_coroutine_threadsafe(Gateway(settings, EnrolledNodes(settings.nodes_folder)).serve(), loop)
    )
    found = RunningGateway(
        folder, authority.certificate, port, superlink, serialization.load_ssh_private_key(private, None)
    )
    wait_until(lambda: reachable(port))
    yield found
    for task in tasks:
        task.cancel()
    asyncio.run_coroutine_threadsafe(drained(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def status_of(connection: ssl.SSLSocket, data: bytes) -> int | None:
    """Send bytes, and return the status of the response; None where the connection is closed without one."""
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="POST", target="/", headers=[("host", "x")]))  # so that it reads a response
    http.send(h11.EndOfMessage())
    status = None
    try:
        connection.sendall(data)
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                http.receive_data(connection.recv(65536))
            elif isinstance(event, h11.Response):
                status = event.status_code
    except (OSError, h11.RemoteProtocolError):
        return None
    return status


async def drained() -> None:
    if left := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in left:  # of open connections
            task.cancel()
        await asyncio.wait(left, timeout=5)


def reachable(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
