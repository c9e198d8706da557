"""The only door of a federation that is open to the network: TLS, known nodes, and Flower's Fleet API.

`python -m zk0.federation.gateway FILE`. Flower's SuperLink serves Fleet, Control and Runtime on one port, and its
Control API has no login: whoever reaches it can register nodes and start runs. So the SuperLink listens on loopback,
and this passes on what a node may ask, from nodes that are enrolled, and nothing else. Every request is taken apart
and written anew (h11 on both sides), so nothing that hides between two ways of reading HTTP gets through. Bodies are
passed on piece by piece and only after the sender has shown who it is.
"""

import asyncio
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import h11
from loguru import logger

from zk0.federation.api import Endpoint
from zk0.federation.guests import Guests, Unknown
from zk0.records import Record

ALLOWED = frozenset(
    f"/v1/fleet/{call}".encode()
    for call in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
"""All that a node asks. Flower has register-node and unregister-node besides: enrolling is the server's business."""
_PASSED_ON = (b"content-type", b"content-length", b"accept")
_PASSED_BACK = (b"content-type", b"content-length", b"transfer-encoding")
_HEAD_BYTES = 16_384
_BODY_BYTES = 64_000_000
_PIECE_BYTES = 262_144
_HEAD_SECONDS = 10.0
_IDLE_SECONDS = 90.0
_BODY_SECONDS = 60.0
_ANSWER_SECONDS = 120.0
_CONNECTIONS = 1000


class GatewaySettings(Record):
    """Where the door is, what stands behind it, and who may come in."""

    host: str
    port: int
    certificate: Path
    key: Path
    superlink: Endpoint
    guests: Path
    """Folder with one public key a node."""


class _Refused(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Side:
    """One connection, read and written as HTTP."""

    def __init__(self, role: type[Any], streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        self.http = h11.Connection(role, max_incomplete_event_size=_HEAD_BYTES)
        self.reader, self.writer = streams

    async def next(self, seconds: float) -> Any:
        """The next event of the other end."""
        async with asyncio.timeout(seconds):
            while (event := self.http.next_event()) is h11.NEED_DATA:
                self.http.receive_data(await self.reader.read(_PIECE_BYTES))
        return event

    async def send(self, event: Any) -> None:
        """Say something, as fast as the other end listens."""
        if data := self.http.send(event):
            self.writer.write(data)
            async with asyncio.timeout(_BODY_SECONDS):
                await self.writer.drain()

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError, TimeoutError, ssl.SSLError):
            async with asyncio.timeout(1):
                await self.writer.wait_closed()


class Gateway:
    """Serves until its task is cancelled."""

    def __init__(self, settings: GatewaySettings, guests: Guests) -> None:
        self._settings = settings
        self._guests = guests
        self._open = 0
        self._upstream = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._upstream.load_verify_locations(settings.superlink.authority)

    async def serve(self) -> None:
        """Let nodes in."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self._settings.certificate, self._settings.key)
        server = await asyncio.start_server(
            self._greet,
            self._settings.host,
            self._settings.port,
            ssl=context,
            ssl_handshake_timeout=_HEAD_SECONDS,
            limit=_PIECE_BYTES,
        )
        logger.info("nodes may come to {}:{}", self._settings.host, self._settings.port)
        async with server:
            await server.serve_forever()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open >= _CONNECTIONS:
            writer.close()
            return
        self._open += 1
        node = _Side(h11.SERVER, (reader, writer))
        try:
            await self._converse(node)
        except (OSError, TimeoutError, h11.ProtocolError, ssl.SSLError) as e:
            logger.debug("{}: {}", writer.get_extra_info("peername"), e)
        finally:
            self._open -= 1
            await node.close()

    async def _converse(self, node: _Side) -> None:
        patience = _HEAD_SECONDS
        while True:
            try:
                request = await node.next(patience)
                if not isinstance(request, h11.Request):
                    return
                name = self._check(request)
                await self._pass_on(node, request, name)
            except h11.RemoteProtocolError as e:
                await self._refuse(node, _Refused(e.error_status_hint, str(e)))
                return
            except _Refused as e:
                await self._refuse(node, e)
                return
            if node.http.our_state is not h11.DONE or node.http.their_state is not h11.DONE:
                return
            node.http.start_next_cycle()
            patience = _IDLE_SECONDS

    def _check(self, request: h11.Request) -> str:
        """Who asks, if this may be asked, and by whom it is asked."""
        if request.target not in ALLOWED:
            raise _Refused(404, f"no such door: {request.target[:80]!r}")
        if request.method != b"POST" or request.http_version != b"1.1":
            raise _Refused(405, f"{request.method[:20]!r} {request.http_version!r}")
        if sum(len(name) + len(value) for name, value in request.headers) > _HEAD_BYTES:
            raise _Refused(431, "too many headers")
        headers: dict[bytes, list[bytes]] = {}
        for name, value in request.headers:
            headers.setdefault(name, []).append(value)
        if headers.keys() & {b"upgrade", b"expect", b"transfer-encoding", b"te", b"trailer"}:
            raise _Refused(400, "a kind of request that no node makes")
        if int(headers.get(b"content-length", [b"0"])[0]) > _BODY_BYTES:
            raise _Refused(413, "too large")
        try:
            return self._guests.recognise(headers)
        except Unknown as e:
            raise _Refused(401, str(e)) from None

    async def _pass_on(self, node: _Side, request: h11.Request, name: str) -> None:
        kept = [(k, v) for k, v in request.headers if k in _PASSED_ON or k.startswith(b"flwr-")]
        host = (b"host", self._settings.superlink.address.encode())
        async with self._superlink() as link:
            try:
                await link.send(h11.Request(method="POST", target=request.target, headers=[host, *kept]))
                while isinstance(event := await node.next(_BODY_SECONDS), h11.Data):
                    await link.send(h11.Data(data=event.data))
                await link.send(h11.EndOfMessage())
                answer = await link.next(_ANSWER_SECONDS)
            except (OSError, h11.RemoteProtocolError, ssl.SSLError) as e:
                raise _Refused(502, f"{name}: the SuperLink does not answer: {e}") from None
            back = [(k, v) for k, v in answer.headers if k in _PASSED_BACK or k.startswith(b"flwr-")]
            await node.send(h11.Response(status_code=answer.status_code, headers=back))
            while isinstance(event := await link.next(_ANSWER_SECONDS), h11.Data):
                await node.send(h11.Data(data=event.data))
            await node.send(h11.EndOfMessage())

    @asynccontextmanager
    async def _superlink(self) -> AsyncIterator[_Side]:
        host, _, port = self._settings.superlink.address.rpartition(":")
        try:
            streams = await asyncio.open_connection(host, int(port), ssl=self._upstream, limit=_PIECE_BYTES)
        except (OSError, ssl.SSLError) as e:
            raise _Refused(503, f"the SuperLink is not there: {e}") from None
        link = _Side(h11.CLIENT, streams)
        try:
            yield link
        finally:
            await link.close()

    async def _refuse(self, node: _Side, why: _Refused) -> None:
        logger.warning("{}: {} {}", node.writer.get_extra_info("peername"), why.status, why)
        if node.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return  # the answer has begun: all that is left is to hang up
        headers = [("content-length", "0"), ("connection", "close")]
        await node.send(h11.Response(status_code=why.status, headers=headers))
        await node.send(h11.EndOfMessage())


async def _run(settings: GatewaySettings) -> None:
    guests = Guests(settings.guests)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(Gateway(settings, guests).serve())
        tasks.create_task(guests.keep_registered(settings.superlink))


if __name__ == "__main__":
    asyncio.run(_run(GatewaySettings.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))))
