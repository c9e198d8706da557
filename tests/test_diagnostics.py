"""Log lines of other libraries reach our log files, and their loggers are restored afterwards."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from loguru import logger

from tasks.logs import session_logs
from zk0.diagnostics import LOGGED_LIBRARIES, forward_library_logs, memory_summary


def test_library_lines_are_in_the_log_files_of_a_session(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flower = logging.getLogger("flwr")
    before = flower.handlers, flower.level, flower.propagate
    with session_logs(tmp_path):
        flower.info("run %d started", 7)
        logging.getLogger("lerobot.datasets").warning("a braced {thing}")
        logging.getLogger("ray").debug("too fine")
        try:
            raise OSError("no room")
        except OSError:
            logging.getLogger("transformers").exception("it failed")
    assert (flower.handlers, flower.level, flower.propagate) == before
    for file in (tmp_path / "simulation.log", tmp_path / "server" / "server.log"):
        text = file.read_text()
        assert re.search(
            rf"INFO +\| {os.getpid()} \| flwr:test_library_lines_are_in_the_log_files_of_a_session:\d+ - run 7 started",
            text,
        )
        assert f"| WARNING  | {os.getpid()} | lerobot.datasets:" in text
        assert "a braced {thing}" in text
        assert "OSError: no room" in text
        assert "too fine" not in text
    flower.info("afterwards")
    assert "afterwards" not in (tmp_path / "simulation.log").read_text()


@pytest.mark.parametrize("name", LOGGED_LIBRARIES)
def test_nested_forwarding_logs_a_line_once(name: str) -> None:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), format="{name} {message}")
    try:
        with forward_library_logs(), forward_library_logs():
            logging.getLogger(f"{name}.inner").error("once")
    finally:
        logger.remove(sink)
    assert lines == [f"{name}.inner once\n"]


WORKER = """
import logging
import sys
from pathlib import Path
from loguru import logger
from zk0.federation.protocol.client_log import client_log

logger.remove()
with client_log(Path(sys.argv[1]) / "clients" / "a", Path(sys.argv[1]) / "simulation.log"):
    logger.info("a: round 1 step 20/40")
with client_log(Path(sys.argv[1]) / "clients" / "a", Path(sys.argv[1]) / "simulation.log", "a, round 7"):
    logging.getLogger("lerobot").warning("a {library}")
logger.info("no client's line")
"""


def test_lines_of_worker_processes_are_in_the_log_of_the_session(tmp_path: Path) -> None:
    with session_logs(tmp_path):
        logger.info("before")
        worker = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)])
        assert worker.wait(200) == 0
        logger.info("after")
    lines = (tmp_path / "simulation.log").read_text().splitlines()
    assert [line.rpartition(" - ")[2] for line in lines] == ["before", "a: round 1 step 20/40", "a {library}", "after"]
    assert f"| {worker.pid} | a | __main__" in lines[1]
    assert f"| {worker.pid} | a, round 7 | lerobot:" in lines[2]
    assert f"| {os.getpid()} |" in lines[0]
    assert "a: round 1 step 20/40" in (tmp_path / "clients" / "a" / "client.log").read_text()


@pytest.mark.parametrize(
    ("settings", "appends"), [({"workers": 2}, True), ({"workers": 0}, False), ({"engine": "ray"}, True)]
)
def test_only_clients_of_other_processes_append(tmp_path: Path, settings: dict[str, object], appends: bool) -> None:
    from zk0.federation.open import _node_config
    from zk0.settings.loading import parse_session

    clients = [{"name": name, "dataset": f"lab/{name}"} for name in "ab"]
    values = {"clients": clients, "evaluation": {"datasets": [{"dataset": "lab/c"}]}, "federation": settings}
    session = parse_session(values, "test")
    found = _node_config(session, session.clients[0], tmp_path)
    assert found.get("session_log") == (str(tmp_path / "simulation.log") if appends else None)


def test_memory_summary_is_now_and_the_peak_of_this_process() -> None:
    ((now, found),) = re.findall(r"memory (\d+\.\d\d) GB now, (\d+\.\d\d) GB at most", memory_summary())
    assert 0 < float(now) <= float(found)
    status = Path("/proc/self/status").read_text()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    assert float(found) == pytest.approx(int(peak) * 1024 / 1e9, abs=0.02)
