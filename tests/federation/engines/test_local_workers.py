"""The local engine starts no more worker processes than are useful."""

import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
from flwr.app import Context, Message

from zk0.errors import FederationError
from zk0.federation.engines.local import LocalGrid
from zk0.federation.engines.worker_process import ForkServer, WorkerProcess


def test_no_more_worker_processes_than_useful(tmp_path: Path, my_workers: Callable[[], list[int]]) -> None:
    with LocalGrid([], 3, tmp_path, max_workers=lambda: 2) as grid:
        deadline = time.monotonic() + 20
        while (alive := [t.is_alive() for t in grid._threads]) != [True, True, False]:
            assert time.monotonic() < deadline, alive
            time.sleep(0.01)
    with LocalGrid([], 3, tmp_path) as grid:
        time.sleep(0.2)
        assert all(t.is_alive() for t in grid._threads)


def test_a_request_rotates_the_log_of_the_worker_and_the_one_that_all_share(tmp_path: Path) -> None:
    """Three workers rotate the log that they share at once."""
    logs = [tmp_path / "workers.log", tmp_path / "worker-0.log"]
    for log in logs:
        with log.open("wb") as file:
            file.truncate(500_000_001)
    server = ForkServer(logs[0])
    server.close()  # no request is handled: rotation comes before

    def request(number: int) -> None:
        worker = WorkerProcess(server, number, tmp_path, lambda *_: None)
        with pytest.raises(FederationError):
            worker.request(cast(Message, None), cast(Context, None), 1.0)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(request, range(3)))
    assert [log.stat().st_size for log in logs] == [0, 0]
    for log in logs:
        (kept,) = tmp_path.glob(f"{log.stem}.*.log.zip")
        assert zipfile.ZipFile(kept).infolist()[0].file_size == 500_000_001
