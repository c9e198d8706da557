"""Lines of other libraries are in our logs, and everything is as it was afterwards."""

import logging
import re
from pathlib import Path

import pytest
from loguru import logger

from tasks.logs import session_logs
from zk0.diagnostics import LIBRARIES, libraries_logged, memory_told


def test_libraries_speak_in_the_sessions_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
        assert re.search(r"INFO +\| flwr:test_libraries_speak_in_the_sessions_files:\d+ - run 7 started", text)
        assert "| WARNING  | lerobot.datasets:" in text
        assert "a braced {thing}" in text
        assert "OSError: no room" in text
        assert "too fine" not in text
    flower.info("afterwards")
    assert "afterwards" not in (tmp_path / "simulation.log").read_text()


@pytest.mark.parametrize("name", LIBRARIES)
def test_one_line_once(name: str) -> None:
    heard: list[str] = []
    sink = logger.add(lambda line: heard.append(str(line)), format="{name} {message}")
    try:
        with libraries_logged(), libraries_logged():
            logging.getLogger(f"{name}.inner").error("once")
    finally:
        logger.remove(sink)
    assert heard == [f"{name}.inner once\n"]


def test_memory_is_that_of_this_process() -> None:
    (found,) = re.findall(r"memory (\d+\.\d\d) GB at most", memory_told())
    status = Path("/proc/self/status").read_text()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    assert float(found) == pytest.approx(int(peak) * 1024 / 1e9, abs=0.02)
