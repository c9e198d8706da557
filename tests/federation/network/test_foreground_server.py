"""A server that a service manager starts and stops."""

import signal
import subprocess
import sys
from pathlib import Path

from waiting import wait_until

from zk0.federation.network.server import ServerFolder, ServerSettings


def test_a_stop_by_a_signal_is_an_act_of_the_operator(tmp_path: Path) -> None:
    server = ServerFolder(tmp_path / "server")
    server.init(ServerSettings(hosts=("127.0.0.1",)))
    server.prepare(server.settings())
    server.supervised.write_processes([])
    command = [sys.executable, "-m", "zk0.federation.network.foreground_server", str(server.path)]
    with subprocess.Popen(command) as process:
        wait_until(lambda: server.supervised.state() is not None, 120)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
    acts = server.operations.read()
    assert [act.act for act in acts] == ["init", "start", "stop"]
    assert acts[-1].detail == "by a signal, in the foreground"
