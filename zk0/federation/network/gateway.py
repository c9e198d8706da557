"""Gateway: the only open port of a federation. It admits enrolled nodes to Flower's Fleet API, by TLS.

`python -m zk0.federation.network.gateway FILE` runs one with the GatewaySettings in a file.

Flower's SuperLink serves its Fleet, Control and Runtime APIs on one port, and its Control API has no login: whoever
reaches it can register nodes and start runs. Therefore the SuperLink listens on loopback, and the gateway forwards the
requests of a SuperNode (ALLOWED_PATHS) from enrolled nodes and rejects all others. It parses every request and writes a
new one (h11 on both sides), so that no request can be hidden in another one (request smuggling). It reads a body only
after the sender is authenticated, and forwards it in pieces; the announcement of an answer, which may be in the name of
another node, it reads as a whole first. Connections are limited from the moment they are accepted
(`zk0.federation.network.connection_limits`), and cost memory for TLS only after their first byte.
"""

import asyncio
import resource
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import h11
from loguru import logger

from zk0.federation.flower.api_client import Endpoint
from zk0.federation.flower.private_api import SUPERNODE_ANSWER_PATH, SUPERNODE_PATHS, answers_for_itself
from zk0.federation.network.connection_limits import (
    AcceptedConnection,
    ConnectionLimits,
    LogQuota,
)
from zk0.federation.network.enrolled_nodes import EnrolledNodes, UnknownNode
from zk0.federation.network.limited_listener import LimitedListener, Streams
from zk0.log_text import write_clean_logs
from zk0.records import Record

ALLOWED_PATHS = frozenset(path.encode() for path in SUPERNODE_PATHS)
"""Nodes cannot register or unregister themselves: the server's operator enrolls and revokes them."""
_REQUEST_HEADERS = (b"content-type", b"content-length", b"accept")
_RESPONSE_HEADERS = (b"content-type", b"content-length", b"transfer-encoding")
_HEAD_BYTES = 16_384
_BODY_BYTES, _OBJECT_BYTES = 4_000_000, 26_000_000
"""Of a request, and of one with an object of a message: a piece of the weights, or an answer without its weights."""
_OBJECT_PATH, _ANSWER_PATH = b"/v1/fleet/push-object", SUPERNODE_ANSWER_PATH.encode()
_PIECE_BYTES = 262_144
_HEAD_SECONDS = 10.0
_IDLE_SECONDS = 90.0
_BODY_SECONDS = 60.0
_RESPONSE_SECONDS = 120.0
_WARNINGS_PER_MINUTE = 100


class GatewaySettings(Record):
    """Address and certificate of the gateway, its SuperLink, and the enrolled nodes."""

    host: str
    port: int
    certificate: Path
    key: Path
    superlink: Endpoint
    nodes_folder: Path
    """With one public key a node."""
    limits: ConnectionLimits = ConnectionLimits()


class _Rejected(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _HttpConnection:
    """One connection, read and written as HTTP events."""

    def __init__(self, role: type[Any], streams: Streams) -> None:
        self.http = h11.Connection(role, max_incomplete_event_size=_HEAD_BYTES)
        self.reader, self.writer = streams

    async def receive(self, timeout_seconds: float) -> Any:
        """Return the next event from the other end."""
        async with asyncio.timeout(timeout_seconds):
            while (event := self.http.next_event()) is h11.NEED_DATA:
                self.http.receive_data(await self.reader.read(_PIECE_BYTES))
        return event

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the pieces of a request's body."""
        while isinstance(event := await self.receive(_BODY_SECONDS), h11.Data):
            yield bytes(event.data)

    async def send(self, event: Any) -> None:
        """Send an event, as fast as the other end reads."""
        if data := self.http.send(event):
            self.writer.write(data)
            async with asyncio.timeout(_BODY_SECONDS):
                await self.writer.drain()

    async def close(self) -> None:
        """Close the connection; at once where the other end does not close it within a second."""
        self.writer.close()
        try:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(1):
                    await self.writer.wait_closed()
        finally:
            self.writer.transport.abort()


async def _in_one_piece(body: bytes) -> AsyncIterator[bytes]:
    yield body


class Gateway:
    """Forwards requests of enrolled nodes to the SuperLink."""

    def __init__(self, settings: GatewaySettings, nodes: EnrolledNodes) -> None:
        self._settings = settings
        self._nodes = nodes
        self._log = LogQuota(_WARNINGS_PER_MINUTE)
        self._listener = LimitedListener(settings.limits, self._log)
        self._upstream = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._upstream.load_verify_locations(settings.superlink.ca_certificate)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.load_cert_chain(settings.certificate, settings.key)

    async def serve(self) -> None:
        """Accept connections until cancelled."""
        address = (self._settings.host, self._settings.port)
        await self._listener.serve(address, self._context, self._serve_node)

    async def _serve_node(self, streams: Streams, connection: AcceptedConnection) -> None:
        node = _HttpConnection(h11.SERVER, streams)
        try:
            await self._handle_requests(node, connection)
        except asyncio.CancelledError:
            node.writer.transport.abort()
            raise
        except h11.ProtocolError as e:
            logger.debug("{}: {}", connection.address, e)
        finally:
            await node.close()

    async def _handle_requests(self, node: _HttpConnection, connection: AcceptedConnection) -> None:
        timeout_seconds = _HEAD_SECONDS
        while True:
            try:
                request = await node.receive(timeout_seconds)
                if not isinstance(request, h11.Request):
                    return
                name = self._authorize(request)
                self._listener.connections.assign(connection, name)
                await self._forward(node, request, name)
            except h11.RemoteProtocolError as e:
                await self._reject(node, _Rejected(e.error_status_hint, str(e)))
                return
            except _Rejected as e:
                await self._reject(node, e)
                return
            if node.http.our_state is not h11.DONE or node.http.their_state is not h11.DONE:
                return
            node.http.start_next_cycle()
            timeout_seconds = _IDLE_SECONDS

    def _authorize(self, request: h11.Request) -> str:
        """Return the name of the node, if its request is allowed."""
        if request.target not in ALLOWED_PATHS:
            raise _Rejected(404, f"path not allowed: {request.target[:80]!r}")
        if request.method != b"POST" or request.http_version != b"1.1":
            raise _Rejected(405, f"{request.method[:20]!r} {request.http_version!r}")
        if sum(len(name) + len(value) for name, value in request.headers) > _HEAD_BYTES:
            raise _Rejected(431, "too many headers")
        headers: dict[bytes, list[bytes]] = {}
        for name, value in request.headers:
            headers.setdefault(name, []).append(value)
        if found := headers.keys() & {b"upgrade", b"expect", b"transfer-encoding", b"te", b"trailer"}:
            raise _Rejected(400, f"headers that no SuperNode sends: {sorted(found)}")
        most = _OBJECT_BYTES if request.target == _OBJECT_PATH else _BODY_BYTES
        if int(headers.get(b"content-length", [b"0"])[0]) > most:
            raise _Rejected(413, "body too large")
        try:
            return self._nodes.authenticate(headers)
        except UnknownNode as e:
            raise _Rejected(401, str(e)) from None

    async def _forward(self, node: _HttpConnection, request: h11.Request, name: str) -> None:
        headers = [(k, v) for k, v in request.headers if k in _REQUEST_HEADERS or k.startswith(b"flwr-")]
        host = (b"host", self._settings.superlink.address.encode())
        body = node.body()
        if request.target == _ANSWER_PATH:
            answer = b"".join([piece async for piece in body])
            if not answers_for_itself(answer):
                raise _Rejected(403, f"{name}: an answer in the name of another node")
            body = _in_one_piece(answer)
        async with self._connect_superlink() as superlink:
            try:
                await superlink.send(h11.Request(method="POST", target=request.target, headers=[host, *headers]))
                async for piece in body:
                    await superlink.send(h11.Data(data=piece))
                await superlink.send(h11.EndOfMessage())
                response = await superlink.receive(_RESPONSE_SECONDS)
            except (OSError, h11.RemoteProtocolError, ssl.SSLError) as e:
                raise _Rejected(502, f"{name}: the SuperLink does not answer: {e}") from None
            back = [(k, v) for k, v in response.headers if k in _RESPONSE_HEADERS or k.startswith(b"flwr-")]
            await node.send(h11.Response(status_code=response.status_code, headers=back))
            while isinstance(event := await superlink.receive(_RESPONSE_SECONDS), h11.Data):
                await node.send(h11.Data(data=event.data))
            await node.send(h11.EndOfMessage())

    @asynccontextmanager
    async def _connect_superlink(self) -> AsyncIterator[_HttpConnection]:
        host, _, port = self._settings.superlink.address.rpartition(":")
        try:
            streams = await asyncio.open_connection(host, int(port), ssl=self._upstream, limit=_PIECE_BYTES)
        except (OSError, ssl.SSLError) as e:
            raise _Rejected(503, f"the SuperLink is not available: {e}") from None
        superlink = _HttpConnection(h11.CLIENT, streams)
        try:
            yield superlink
        finally:
            await superlink.close()

    async def _reject(self, node: _HttpConnection, error: _Rejected) -> None:
        self._log.warning(f"{node.writer.get_extra_info('peername')}: {error.status} {error}")
        if node.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return  # a response has begun; closing the connection is all that is left
        headers = [("content-length", "0"), ("connection", "close")]
        await node.send(h11.Response(status_code=error.status, headers=headers))
        await node.send(h11.EndOfMessage())


async def _run(settings: GatewaySettings) -> None:
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    nodes = EnrolledNodes(settings.nodes_folder)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(Gateway(settings, nodes).serve())
        tasks.create_task(nodes.sync_superlink(settings.superlink))


if __name__ == "__main__":
    write_clean_logs()
    asyncio.run(_run(GatewaySettings.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))))
