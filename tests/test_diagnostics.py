"""Log lines of other libraries reach our log files, and their loggers are restored afterwards."""

import logging
import re
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
            r"INFO +\| flwr:test_library_lines_are_in_the_log_files_of_a_session:\d+ - run 7 started", text
        )
        assert "| WARNING  | lerobot.datasets:" in text
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


def test_memory_summary_is_the_peak_of_this_process() -> None:
    (found,) = re.findall(r"memory (\d+\.\d\d) GB at most", memory_summary())
    status = Path("/proc/self/status").read_text()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    assert float(found) == pytest.approx(int(peak) * 1024 / 1e9, abs=0.02)
