"""What processes of zk0 have in common."""

import gc
import subprocess
import sys

import pytest

from zk0.processes import collect_garbage_less_often


@pytest.mark.parametrize(("module", "changed"), [("zk0", False), ("zk0.processes", False), ("flows", True)])
def test_programs_collect_garbage_less_often_and_the_library_does_not(module: str, changed: bool) -> None:
    code = f"import gc; before = gc.get_threshold(); import {module}; print(gc.get_threshold() != before)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(changed)


def test_only_the_youngest_generation_waits_longer() -> None:
    before = gc.get_threshold()
    collect_garbage_less_often()
    assert gc.get_threshold() == (10_000, *before[1:])
