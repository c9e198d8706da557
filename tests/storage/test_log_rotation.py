"""Logs of processes are rotated while the processes write, as the logs of loguru are."""

import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from flows.prefect_local.local_prefect import local_prefect
from flows.prefect_local.prefect_process import PrefectProcess
from zk0.errors import SettingsError
from zk0.storage.log_rotation import rotate_log

WRITER = """
import sys
for line in sys.stdin:
    print('w' * 10, line.strip(), flush=True)
    print('done', file=sys.stderr)
"""


def test_a_process_goes_on_in_the_emptied_log(tmp_path: Path) -> None:
    log, old = tmp_path / "worker-0.log", tmp_path / "worker-0.2026-01-01_00-00-00_000000.log.zip"
    old.write_bytes(b"")
    os.utime(old, (0, 0))
    (other := tmp_path / "worker-1.log").write_text("x" * 100)
    with log.open("ab") as file:
        pipes = {"stdin": subprocess.PIPE, "stdout": file, "stderr": subprocess.PIPE, "text": True}
        writer = subprocess.Popen([sys.executable, "-c", WRITER], **pipes)
    assert writer.stdin is not None
    assert writer.stderr is not None
    for number in (1, 2):
        writer.stdin.write(f"{number}\n")
        writer.stdin.flush()
        writer.stderr.readline()
        if number == 1:
            rotate_log(log, largest_bytes=1000)
            assert log.stat().st_size > 0, "a small log is left alone; its older parts are not"
            assert not old.exists()
            rotate_log(log, largest_bytes=10)
            assert log.stat().st_size == 0
    writer.stdin.close()
    assert writer.wait(30) == 0
    assert log.read_text() == "wwwwwwwwww 2\n"
    (rotated,) = tmp_path.glob("*.zip")
    assert zipfile.ZipFile(rotated).read("worker-0.log") == b"wwwwwwwwww 1\n"
    assert other.read_text() == "x" * 100
    rotate_log(tmp_path / "missing.log")


def test_logs_of_an_earlier_prefect_are_kept_compressed(tmp_path: Path) -> None:
    """It may have ended for a reason that only its log tells; the next one starts by itself where it is supervised."""
    logs = tmp_path / "home" / "zk0-ui"
    logs.mkdir(parents=True)
    (logs / "server.log").write_text("out of memory\n")
    (tmp_path / "prefect.yaml").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        started = local_prefect(tmp_path, tmp_path / "home", taken.getsockname()[1], lambda _: None)
        with pytest.raises(SettingsError, match="--port"):
            started.__enter__()
    (kept,) = logs.glob("server.*.log.zip")
    assert zipfile.ZipFile(kept).read("server.log") == b"out of memory\n"
    assert (logs / "server.log").read_text() == ""


def test_the_log_of_a_running_prefect_is_rotated(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    with log.open("wb") as file:
        file.truncate(500_000_001)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        PrefectProcess(name="worker", popen=process, log=log).check_running()
        process.communicate(b"\n")
    assert log.stat().st_size == 0
    (kept,) = tmp_path.glob("worker.*.log.zip")
    assert zipfile.ZipFile(kept).infolist()[0].file_size == 500_000_001
