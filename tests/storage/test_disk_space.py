"""`drop_page_cache` removes a file from memory and leaves it on the disk."""

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zk0.storage.disk_space import drop_page_cache

SIZE = 4 << 20


def pages_in_memory(path: Path) -> int:
    """Number of pages of a file in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        first, found = ctypes.c_char.from_buffer(mapped), (ctypes.c_ubyte * (len(mapped) // mmap.PAGESIZE))()
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(mapped)), found)
        del first
        assert not failed, os.strerror(ctypes.get_errno())
        return sum(page & 1 for page in found)


@pytest.mark.skipif(sys.platform != "linux", reason="mincore is a call of Linux")
def test_pages_are_dropped_and_the_file_stays(tmp_path: Path) -> None:
    if subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True).stdout == "tmpfs\n":
        pytest.skip("a tmpfs has no page cache")
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.write(os.urandom(SIZE))
        file.flush()
        os.fsync(file.fileno())
    before, wanted = path.read_bytes(), SIZE // mmap.PAGESIZE
    assert pages_in_memory(path) == wanted
    drop_page_cache(path)
    assert pages_in_memory(path) == 0
    assert path.read_bytes() == before


def test_missing_file_is_ignored(tmp_path: Path) -> None:
    drop_page_cache(tmp_path / "nothing")
