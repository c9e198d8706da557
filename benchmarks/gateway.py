"""The gateway under a flood of connections without a key, while enrolled nodes work: their requests, and its memory.

    python benchmarks/gateway.py --silent 3000 --idle 1500 --nodes 20 --seconds 30

Server, enrolled nodes and unknown ones run on loopback. Of the unknown ones, silent ones open a TCP connection and send
nothing; idle ones finish the TLS handshake and send nothing; those of `--unfinished` begin it and send nothing more.
Each one connects again `--pause` seconds after it is dropped. Each enrolled node sends a signed request every half
second, in turn on the connection that it has and on a new one. `--addresses N` spreads the unknown nodes over N
addresses; 0: they come from the address of the enrolled nodes.
"""

import argparse
import asyncio
import base64
import http.client
import json
import resource
import socket
import ssl
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_PAUSE_SECONDS = 0.5
_TIMEOUT_SECONDS = 20.0


class Node:
    """One enrolled node."""

    def __init__(self, kit: Any, port: int) -> None:
        self.through, self.failed, self.slowest = 0, 0, 0.0
        self._key = serialization.load_ssh_private_key(kit.key.encode(), None)
        self._port = port
        self._context = ssl.create_default_context(cadata=kit.ca_certificate)

    def work(self, end: float) -> None:
        """Send requests until `end`; every second one on a new connection."""
        kept: http.client.HTTPSConnection | None = None
        while time.monotonic() < end:
            if kept is None:
                kept = self._connection()
            self._request(kept)
            new = self._connection()
            self._request(new)
            new.close()
            time.sleep(_PAUSE_SECONDS)

    def _connection(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self._port, timeout=_TIMEOUT_SECONDS, context=self._context)

    def _request(self, connection: http.client.HTTPSConnection) -> None:
        began = time.monotonic()
        try:
            connection.request("POST", "/v1/fleet/pull-messages", b"", self._headers())
            response = connection.getresponse()
            response.read()
            self.through += response.status < 500
            self.failed += response.status >= 500
        except (OSError, http.client.HTTPException):
            self.failed += 1
            connection.close()
        self.slowest = max(self.slowest, time.monotonic() - began)

    def _headers(self) -> dict[str, str]:
        stamp = datetime.now(UTC).isoformat()
        public = self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        assert isinstance(self._key, ec.EllipticCurvePrivateKey)
        signature = self._key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
        return {
            "flwr-public-key": base64.b64encode(public).decode(),
            "flwr-signature": base64.b64encode(signature).decode(),
            "flwr-timestamp": stamp,
        }


def first_message(context: ssl.SSLContext) -> bytes:
    """Return what a client sends to begin a TLS handshake."""
    sent = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent).do_handshake()
    return sent.read()


async def flood(port: int, kinds: tuple[int, int, int], addresses: int, pause: float, seconds: float) -> int:
    """Keep connections open without a key for some time, and return how many were made.

    Args:
        port: of the gateway.
        kinds: connections that send nothing, that finish the handshake, and that begin it.
        addresses: from which they come.
        pause: in seconds, before a dropped one is opened again.
        seconds: how long.
    """
    silent, idle, _ = kinds
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    made, begin = 0, first_message(context)

    async def unknown_node(number: int) -> None:
        nonlocal made
        source = f"127.{1 + number % addresses // 250}.0.{1 + number % addresses % 250}" if addresses else "127.0.0.1"
        while True:
            try:
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", port, ssl=context if silent <= number < silent + idle else None, local_addr=(source, 0)
                )
                made += 1
                if number >= silent + idle:
                    writer.write(begin)
                while await reader.read(4096):
                    pass
                writer.transport.abort()
            except (OSError, ssl.SSLError):
                pass
            await asyncio.sleep(pause)

    tasks = [asyncio.create_task(unknown_node(number)) for number in range(sum(kinds))]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return made


def _flood(port: int, kinds: tuple[int, int, int], addresses: int, pause: float, seconds: float) -> int:
    return asyncio.run(flood(port, kinds, addresses, pause, seconds))


def megabytes(pid: int, field: str) -> float:
    """Return a field of a process's memory (VmRSS, VmHWM)."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Start a server in a folder, flood it, and return the figures."""
    from zk0.federation.network.flower_commands import free_port
    from zk0.federation.network.server import ServerFolder, ServerSettings

    server, port = ServerFolder(folder), free_port()
    server.init(ServerSettings(hosts=("127.0.0.1",), port=port, in_memory=True))
    nodes = [Node(server.enroll(f"arm-{number}"), port) for number in range(arguments.nodes)]
    server.start(detached=False)
    try:
        state = server.supervised.state()
        assert state is not None
        pid = state.processes["gateway"].pid
        assert pid is not None
        before, end = megabytes(pid, "VmRSS"), time.monotonic() + arguments.seconds
        threads = [threading.Thread(target=node.work, args=(end,)) for node in nodes]
        for thread in threads:
            thread.start()
        kinds = (arguments.silent, arguments.idle, arguments.unfinished)
        with ProcessPoolExecutor(
            1, get_context("spawn")
        ) as other:  # so that nodes and unknown nodes do not wait for one interpreter
            made = other.submit(_flood, port, kinds, arguments.addresses, arguments.pause, arguments.seconds).result()
        for thread in threads:
            thread.join()
        time.sleep(2)
        return {
            "connections_without_key": made,
            "requests_of_nodes": sum(node.through for node in nodes),
            "failed_requests_of_nodes": sum(node.failed for node in nodes),
            "slowest_request_seconds": round(max(node.slowest for node in nodes), 2),
            "gateway_megabytes_before": round(before),
            "gateway_megabytes_most": round(megabytes(pid, "VmHWM")),
            "gateway_megabytes_after": round(megabytes(pid, "VmRSS")),
        }
    finally:
        server.stop()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--silent", type=int, default=3000)
    parser.add_argument("--idle", type=int, default=1500)
    parser.add_argument("--unfinished", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--addresses", type=int, default=100)
    parser.add_argument(
        "--pause", type=float, default=_PAUSE_SECONDS, help="seconds before a dropped connection is opened again"
    )
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    arguments = parser.parse_args()
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments)
    for name, value in found.items():
        sys.stdout.write(f"{name.replace('_', ' '):28} {value:g}\n")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
