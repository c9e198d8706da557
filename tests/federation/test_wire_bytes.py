"""What goes over a node's line, counted at the socket: the weights in their wire format, and little else."""

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from zk0.records import Wire

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass
class Line:
    """A relay between a node and its server that counts what passes."""

    port: int
    up: int = 0
    down: int = 0


@contextmanager
def counted(target: int) -> Iterator[Line]:
    """A line to a port of this machine, as long as the block lasts."""
    listener = socket.create_server(("127.0.0.1", 0))
    line = Line(listener.getsockname()[1])

    def copy(source: socket.socket, sink: socket.socket, way: str) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                setattr(line, way, getattr(line, way) + len(data))
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
                except OSError:  # the server is not up yet; nodes come again
                    node.close()
                    continue
                for pair in ((node, there, "up"), (there, node, "down")):
                    threading.Thread(target=copy, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield line
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_bytes_at_the_socket(deploy: Callable[..., Any], drive: type, tmp_path: Path) -> None:
    from zk0.federation.agent import AgentSettings
    from zk0.federation.downlink import as_sent
    from zk0.federation.open import open_federation

    deployment = deploy(tmp_path, ("a",))
    node = deployment.nodes["a"]
    try:
        with counted(deployment.server.settings().port) as line:
            node.stop()
            node.take(node.kit().model_copy(update={"server": f"127.0.0.1:{line.port}"}))
            settings = AgentSettings.model_validate_json((node.path / "agent.json").read_text())
            node.start(settings.client, settings.cache, outlives=False)
            driven = drive(deployment.session(federation={"min_updates": 1}), tmp_path / "session")
            with open_federation(driven.session, "mini", driven.folder) as federation:
                driven.begin(federation)
                shares = {"fp32": 1.001, "bf16": 0.51, "int8": 0.29}
                for up, down in (("fp32", "fp32"), ("bf16", "bf16"), ("int8", "int8")):
                    start = driven.history[-1]
                    rules = driven.session.federation.model_copy(update={"wire": up, "wire_down": down})
                    sent = as_sent(rules, Path(start.path), tmp_path / f"{up}-{down}.sent")
                    plans = [sent.told(plan) for plan in driven.plans(wire=Wire(up=up))]
                    before = line.up, line.down
                    found = federation.train(plans, Path(start.path), driven.spool(), sent=sent.path)
                    passed = line.up - before[0], line.down - before[1]
                    assert found.refusals == ()
                    told = f"{up} up, {down} down: {passed} bytes at the socket"
                    for counted_bytes, file_bytes in zip(passed, (found.updates[0].bytes, sent.bytes), strict=True):
                        assert file_bytes < counted_bytes < 1.02 * file_bytes + 40_000, told  # TLS, and polls meanwhile
                    assert sent.bytes < shares[down] * start.bytes
                    assert found.updates[0].bytes < shares[up] * start.bytes
                    sys.stderr.write(told + "\n")
                    driven.average(found.updates)
    finally:
        deployment.stop()
