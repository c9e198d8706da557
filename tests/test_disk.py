"""What the system keeps of a file in memory is let go when it is asked to."""

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zk0.disk import forget_pages

SIZE = 4 << 20


def pages_in_memory(path: Path) -> int:
    """How many pages of a file the system holds."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        first, found = ctypes.c_char.from_buffer(mapped), (ctypes.c_ubyte * (len(mapped) // mmap.PAGESIZE))()
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(mapped)), found)
        del first
        assert not failed, os.strerror(ctypes.get_errno())
        return sum(page & 1 for page in found)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which pages are in memory")
def test_pages_are_let_go_and_the_file_stays(tmp_path: Path) -> None:
    if subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True).stdout == "tmpfs\n":
        pytest.skip("this folder is memory itself")
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.write(os.urandom(SIZE))
        file.flush()
        os.fsync(file.fileno())
    before, wanted = path.read_bytes(), SIZE // mmap.PAGESIZE
    assert pages_in_memory(path) == wanted
    forget_pages(path)
    assert pages_in_memory(path) == 0
    assert path.read_bytes() == before


def test_no_file_is_no_fault(tmp_path: Path) -> None:
    forget_pages(tmp_path / "nothing")
