"""Logs of processes are rotated while the processes write, as the logs of loguru are."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

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
            assert old.exists(), "a small log is left alone, and so are its older parts"
            rotate_log(log, largest_bytes=10)
            assert log.stat().st_size == 0
    writer.stdin.close()
    assert writer.wait(30) == 0
    assert log.read_text() == "wwwwwwwwww 2\n"
    (rotated,) = tmp_path.glob("*.zip")
    assert zipfile.ZipFile(rotated).read("worker-0.log") == b"wwwwwwwwww 1\n"
    assert other.read_text() == "x" * 100
    rotate_log(tmp_path / "missing.log")
