"""The local engine starts no more worker processes than are useful."""

import time
from collections.abc import Callable
from pathlib import Path

from zk0.federation.engines.local import LocalGrid


def test_no_more_worker_processes_than_useful(tmp_path: Path, my_workers: Callable[[], list[int]]) -> None:
    with LocalGrid([], 3, tmp_path, max_workers=lambda: 2) as grid:
        deadline = time.monotonic() + 20
        while (alive := [t.is_alive() for t in grid._threads]) != [True, True, False]:
            assert time.monotonic() < deadline, alive
            time.sleep(0.01)
    with LocalGrid([], 3, tmp_path) as grid:
        time.sleep(0.2)
        assert all(t.is_alive() for t in grid._threads)
