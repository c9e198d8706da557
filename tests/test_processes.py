"""What processes of zk0 have in common."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zk0.processes import _packages_of_files, collect_garbage_less_often


def printed_by(code: str) -> str:
    """Return what a new Python process prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("module", "changed"), [("zk0", False), ("zk0.processes", False), ("flows", True)])
def test_programs_collect_garbage_less_often_and_the_library_does_not(module: str, changed: bool) -> None:
    code = f"import gc; before = gc.get_threshold(); import {module}; print(gc.get_threshold() != before)"
    assert printed_by(code) == f"{changed}\n"


def test_programs_search_the_installed_packages_once() -> None:
    code = (
        "import importlib.metadata, flows\n"
        "from transformers.utils import import_utils as transformers\n"
        "from diffusers.utils import import_utils as diffusers\n"
        "found = importlib.metadata.packages_distributions()\n"
        "print(transformers.PACKAGE_DISTRIBUTION_MAPPING is diffusers._package_map is found, found['torch'])"
    )
    assert printed_by(code) == "True ['torch']\n"


def test_the_faster_search_finds_what_the_standard_library_finds() -> None:
    code = (
        "import importlib.metadata as m; from zk0.processes import installed_packages\n"
        "expected, found = ({k: sorted(v) for k, v in f().items()} for f in (m.packages_distributions, "
        "installed_packages))\n"
        "print(found == expected, len(found) > 100, found.keys() >= {'torch', 'yaml', 'google'})"
    )
    assert printed_by(code) == "True True True\n"


@pytest.mark.parametrize(
    ("record", "packages"),
    [
        ("a/b.py,sha256=x,1\na/c.py,,\nd.py,,\n", ["a", "d"]),
        ('"with, comma/x.py",,\n../../bin/tool,,\nname-1.0.dist-info/RECORD,,\n', []),
        ("e.cpython-312-x86_64-linux-gnu.so,,\nREADME.md,,\n\n", ["e"]),
        ("", []),
    ],
)
def test_packages_of_a_wheels_list_of_files(record: str, packages: list[str]) -> None:
    assert _packages_of_files(record) == packages


def test_only_the_youngest_generation_waits_longer() -> None:
    before = gc.get_threshold()
    collect_garbage_less_often()
    assert gc.get_threshold() == (10_000, *before[1:])


def test_objects_that_stay_are_not_searched_at_the_end_of_a_process() -> None:
    """Functions registered before run after: the collection at Python's end then finds no object to search."""
    code = (
        "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count(), len(gc.get_objects()))); import flows"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    frozen, searched = map(int, found.stdout.split())
    assert frozen > 10_000
    assert searched < 100


def test_a_process_that_ignores_the_end_of_its_parent_is_killed() -> None:
    child = (
        "import os, signal, sys, time\n"
        "from zk0.processes import die_with_parent, end_after_parent\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "die_with_parent(int(sys.argv[1]), signal.SIGTERM)\n"
        "end_after_parent(int(sys.argv[1]), 0.5)\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = "import os, subprocess, sys\nsubprocess.run([sys.executable, '-c', sys.argv[1], str(os.getpid())])\n"
    with subprocess.Popen([sys.executable, "-c", parent, child], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        pid = int(started.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        started.kill()
        for _ in range(200):
            if not Path(f"/proc/{pid}").exists():
                return
            time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the process outlived its parent")
