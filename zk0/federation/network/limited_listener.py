"""A listening TCP socket whose connections are limited before, during and after their TLS handshake."""

import asyncio
import socket
import ssl
import traceback
from collections.abc import Awaitable, Callable

from loguru import logger

from zk0.federation.network.connection_limits import (
    AcceptedConnection,
    AcceptedConnections,
    ConnectionLimits,
    LogQuota,
)

type Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
type StreamsHandler = Callable[[Streams, AcceptedConnection], Awaitable[None]]

_BACKLOG = 4096
_ACCEPTED_AT_ONCE = 64
_BUFFER_BYTES = 65_536
_PAUSE_SECONDS = 1.0
_TLS_HANDSHAKE = b"\x16"
"""First byte of a TLS connection (RFC 8446, section 5.1)."""


class LimitedListener:
    """Accepts connections, and serves each in a task of its own.

    Args:
        limits: of the connections.
        log: for connections that are closed because of a limit.
    """

    def __init__(self, limits: ConnectionLimits, log: LogQuota) -> None:
        self.connections = AcceptedConnections(limits)
        self._limits = limits
        self._log = log
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, address: tuple[str, int], context: ssl.SSLContext, handler: StreamsHandler) -> None:
        """Accept connections until cancelled; `handler` is called after each TLS handshake, and closes the streams."""
        family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server(address, family=family, backlog=_BACKLOG) as listener:
            listener.setblocking(False)
            logger.info("accepting nodes at {}:{}", *address)
            try:
                while True:
                    await self._accept(listener, context, handler)
            finally:
                for task in self._tasks:
                    task.cancel()

    async def _accept(self, listener: socket.socket, context: ssl.SSLContext, handler: StreamsHandler) -> None:
        """Accept the connections that have arrived; the others have their turn before the next ones."""
        await _readable(listener)
        try:
            for _ in range(_ACCEPTED_AT_ONCE):
                accepted, peer = listener.accept()
                accepted.setblocking(False)
                serving = self._serve_connection(accepted, peer[0], context, handler)
                task = asyncio.create_task(serving, name=f"{peer[0]}:{peer[1]}")
                self._tasks.add(task)
                task.add_done_callback(self._log_failure)
        except (BlockingIOError, ConnectionAbortedError):
            pass
        except OSError as e:
            self._log.warning(f"no connection can be accepted: {e}; raise the limit of open files (LimitNOFILE)")
            await asyncio.sleep(_PAUSE_SECONDS)
        await asyncio.sleep(0)

    def _log_failure(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.opt(exception=error).error("{}: its connection failed", task.get_name())

    async def _serve_connection(
        self, accepted: socket.socket, peer: str, context: ssl.SSLContext, handler: StreamsHandler
    ) -> None:
        """Serve one connection until it ends or is closed because of a limit."""
        task, reasons = asyncio.current_task(), list[str]()
        assert task is not None

        def close(reason: str) -> None:
            reasons.append(reason)
            task.cancel()

        connection = self.connections.add(peer, close, lambda: _has_unread(accepted))
        try:
            streams = await self._handshake(accepted, connection, context)
            if streams is not None:
                await handler(streams, connection)
        except (OSError, TimeoutError) as e:
            traceback.clear_frames(e.__traceback__)  # asyncio's refer to the error: a cycle that keeps the TLS buffers
        except asyncio.CancelledError:
            if not reasons:
                raise
            # Not raised: the task would keep the exception, which keeps the frames and buffers of the connection.
            self._log.warning(f"{task.get_name()}: closed, because {reasons[0]}")
        finally:
            self.connections.remove(connection)

    async def _handshake(
        self, accepted: socket.socket, connection: AcceptedConnection, context: ssl.SSLContext
    ) -> Streams | None:
        """Return the streams of a connection after its TLS handshake; None where it does not begin one.

        The buffers for TLS (some 300 kB) are allocated only once it has its turn.
        """
        try:
            async with asyncio.timeout(self._limits.handshake_seconds):
                await _readable(accepted)
            begins = accepted.recv(1, socket.MSG_PEEK) == _TLS_HANDSHAKE
            if begins:
                await self.connections.wait_for_turn(connection)
        except BaseException:
            accepted.close()
            raise
        if not begins:
            accepted.close()
            return None
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_BUFFER_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        async with asyncio.timeout(self._limits.handshake_seconds):
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, accepted, ssl=context)
        self.connections.establish(connection)
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def _has_unread(connection: socket.socket) -> bool:
    """Return whether the other end has sent something that was not read yet."""
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


async def _readable(connection: socket.socket) -> None:
    """Return once something has arrived, or the other end has closed the connection."""
    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()
    loop.add_reader(connection, arrived.set)
    try:
        await arrived.wait()
    finally:
        loop.remove_reader(connection)
