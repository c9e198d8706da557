"""A server that a service manager starts and stops."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from waiting import wait_until

from zk0.federation.network.server import ServerFolder, ServerSettings


@contextmanager
def foreground_server(folder: Path) -> Iterator[tuple[ServerFolder, "subprocess.Popen[bytes]"]]:
    """A server without processes, in the foreground; it has ended after the block."""
    server = ServerFolder(folder)
    server.init(ServerSettings(hosts=("127.0.0.1",)))
    server.prepare(server.settings())
    server.supervised.write_processes([])
    command = [sys.executable, "-m", "zk0.federation.network.foreground_server", str(server.path)]
    with subprocess.Popen(command) as process:
        wait_until(lambda: server.supervised.state() is not None, 120)
        yield server, process
    assert process.returncode == 0


def test_a_stop_by_a_signal_is_an_act_of_the_operator(tmp_path: Path) -> None:
    with foreground_server(tmp_path / "server") as (server, process):
        process.send_signal(signal.SIGTERM)
    acts = server.operations.read()
    assert [act.act for act in acts] == ["init", "start", "stop"]
    assert acts[-1].detail == "by a signal, in the foreground"


def test_a_stop_by_the_command_is_recorded_once(tmp_path: Path) -> None:
    with foreground_server(tmp_path / "server") as (server, _):
        assert server.stop()
    assert [(act.act, act.detail) for act in server.operations.read()][2:] == [("stop", "")]
    assert not server.stop()
