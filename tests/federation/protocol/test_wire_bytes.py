"""Bytes at a node's socket: the weights in their wire format, and little else."""

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from zk0.records import WireFormat

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass
class Traffic:
    """Bytes that a relay between a node and its server has forwarded, and the relay's port."""

    port: int
    up: int = 0
    down: int = 0


@contextmanager
def counting_relay(target: int) -> Iterator[Traffic]:
    """Relay connections to a port of this machine, and count their bytes, until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    traffic = Traffic(listener.getsockname()[1])

    def copy(source: socket.socket, sink: socket.socket, way: str) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                setattr(traffic, way, getattr(traffic, way) + len(data))
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                node, _ = listener.accept()
                try:
                    there = socket.create_connection(("127.0.0.1", target))
                except OSError:  # the server is starting; nodes retry
                    node.close()
                    continue
                for pair in ((node, there, "up"), (there, node, "down")):
                    threading.Thread(target=copy, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield traffic
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_bytes_at_the_socket(deploy: Callable[..., Any], drive: type, tmp_path: Path) -> None:
    from zk0.federation.network.agent import AgentSettings
    from zk0.federation.open import open_federation
    from zk0.federation.protocol.downlink import encode_global_weights

    deployment = deploy(tmp_path, ("a",))
    node = deployment.nodes["a"]
    try:
        with counting_relay(deployment.server.settings().port) as traffic:
            node.stop()
            node.install_kit(node.read_kit().model_copy(update={"server": f"127.0.0.1:{traffic.port}"}))
            settings = AgentSettings.model_validate_json((node.path / "agent.json").read_text())
            node.start(settings.client, settings.cache, detached=False)
            driven = drive(deployment.session(federation={"min_updates": 1}), tmp_path / "session")
            with open_federation(driven.session, "mini", driven.folder) as federation:
                driven.begin(federation)
                shares = {"fp32": 1.001, "bf16": 0.51, "int8": 0.29}
                for up, down in (("fp32", "fp32"), ("bf16", "bf16"), ("int8", "int8")):
                    start = driven.history[-1]
                    settings = driven.session.federation.model_copy(update={"wire": up, "wire_down": down})
                    sent = encode_global_weights(settings, Path(start.path), tmp_path / f"{up}-{down}.sent")
                    plans = [sent.with_wire(plan) for plan in driven.plans(wire=WireFormat(upload=up))]
                    before = traffic.up, traffic.down
                    found = federation.train(plans, Path(start.path), driven.spool(), sent_weights=sent.path)
                    forwarded = traffic.up - before[0], traffic.down - before[1]
                    assert found.refusals == ()
                    report = f"{up} up, {down} down: {forwarded} bytes at the socket"
                    for counted_bytes, file_bytes in zip(forwarded, (found.updates[0].bytes, sent.bytes), strict=True):
                        most = 1.02 * file_bytes + 40_000  # TLS, and polls meanwhile
                        assert file_bytes < counted_bytes < most, report
                    assert sent.bytes < shares[down] * start.bytes
                    assert found.updates[0].bytes < shares[up] * start.bytes
                    sys.stderr.write(report + "\n")
                    driven.average(found.updates)
    finally:
        deployment.stop()
