"""Clients share a GPU through file locks; the tests need no GPU."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from zk0.settings.training_settings import LocalTrainingSettings
from zk0.training.gpu_share import acquire_gpu_share

HOLDER = """
import sys
from pathlib import Path
from zk0.training.gpu_share import acquire_gpu_share
with acquire_gpu_share("0", float(sys.argv[2]), lambda: print("waits", flush=True), Path(sys.argv[1])):
    print("works", flush=True)
    sys.stdin.read()
"""


class Workers:
    """Clients in threads, each of which works until the test stops it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.working: list[str] = []
        self.waiting: list[str] = []
        self._ends: dict[str, threading.Event] = {}
        self._threads: list[threading.Thread] = []

    def start(self, name: str, share: float, gpu: str = "0") -> None:
        """Start a client; return when it works or waits."""
        known = len(self.working) + len(self.waiting)
        self._ends[name] = threading.Event()
        self._threads.append(threading.Thread(target=self._work, args=(name, share, gpu)))
        self._threads[-1].start()
        while len(self.working) + len(self.waiting) == known:
            time.sleep(0.001)

    def stop(self, name: str, then: list[str]) -> None:
        """Stop a client; the clients in `then` work afterwards, and no other."""
        self._ends[name].set()
        deadline = time.monotonic() + 20
        while sorted(self.working) != then and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.15)  # long enough for another client to start by mistake
        assert sorted(self.working) == then

    def close(self) -> None:
        for end in self._ends.values():
            end.set()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()

    def _work(self, name: str, share: float, gpu: str) -> None:
        with acquire_gpu_share(gpu, share, lambda: self.waiting.append(name), self.folder):
            self.working.append(name)
            if name in self.waiting:
                self.waiting.remove(name)
            self._ends[name].wait()
            self.working.remove(name)


@pytest.fixture
def workers(tmp_path: Path):
    started = Workers(tmp_path)
    yield started
    started.close()


def test_one_at_a_time(workers: Workers) -> None:
    for name in "abc":
        workers.start(name, 1.0)
    assert workers.working == ["a"]
    workers.stop("a", then=["b"] if "b" in workers.waiting[:1] else ["c"])


def test_two_clients_with_half_a_gpu_at_once_and_each_gpu_separately(workers: Workers) -> None:
    for name in "abc":
        workers.start(name, 0.5)
    workers.start("d", 1.0, gpu="1")
    assert sorted(workers.working) == ["a", "b", "d"]
    assert workers.waiting == ["c"]
    workers.stop("a", then=["b", "c", "d"])


def test_a_client_that_needs_the_whole_gpu_is_not_overtaken(workers: Workers) -> None:
    workers.start("half", 0.5)
    workers.start("all", 1.0)
    workers.start("another half", 0.5)
    assert workers.working == ["half"]
    workers.stop("half", then=["all"])
    workers.stop("all", then=["another half"])


def test_a_killed_process_releases_its_share(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path), "1"]
    first, second = (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    lines = [first.stdout.readline(), second.stdout.readline()]
    holder, waiter = (first, second) if lines[0] == "works\n" else (second, first)
    assert sorted(lines) == ["waits\n", "works\n"]
    holder.kill()
    assert waiter.stdout.readline() == "works\n"
    waiter.communicate("")
    holder.communicate()
    assert waiter.returncode == 0


def test_without_a_gpu_no_client_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zk0.training.gpu_share import gpu_share_for, max_useful_workers, shares_gpu

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    training = LocalTrainingSettings(device="cpu")
    assert not shares_gpu(training)
    assert max_useful_workers(training) is None
    with gpu_share_for(training, pytest.fail), gpu_share_for(training, pytest.fail):
        assert list(tmp_path.iterdir()) == []
    assert shares_gpu(LocalTrainingSettings(device="cuda"))
    assert not shares_gpu(LocalTrainingSettings(device="cuda", gpu_share=0))
