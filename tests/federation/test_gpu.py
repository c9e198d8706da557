"""Clients take turns on a GPU: a rule of locks, so it needs no GPU to be tried."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from zk0.federation.gpu import turn
from zk0.federation.local import LocalGrid
from zk0.session import TrainingSettings

HOLDER = """
import sys
from pathlib import Path
from zk0.federation.gpu import turn
with turn("0", float(sys.argv[2]), lambda: print("waits", flush=True), Path(sys.argv[1])):
    print("works", flush=True)
    sys.stdin.read()
"""


class Workers:
    """Clients in threads, each of which works until it is told to stop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.at_work: list[str] = []
        self.waiting: list[str] = []
        self._ends: dict[str, threading.Event] = {}
        self._threads: list[threading.Thread] = []

    def begin(self, name: str, share: float, gpu: str = "0") -> None:
        """It works or waits when this returns."""
        known = len(self.at_work) + len(self.waiting)
        self._ends[name] = threading.Event()
        self._threads.append(threading.Thread(target=self._work, args=(name, share, gpu)))
        self._threads[-1].start()
        while len(self.at_work) + len(self.waiting) == known:
            time.sleep(0.001)

    def end(self, name: str, then: list[str]) -> None:
        """It stops, and those work."""
        self._ends[name].set()
        deadline = time.monotonic() + 20
        while sorted(self.at_work) != then and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.15)  # long enough for one more to begin that must not
        assert sorted(self.at_work) == then

    def close(self) -> None:
        for end in self._ends.values():
            end.set()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()

    def _work(self, name: str, share: float, gpu: str) -> None:
        with turn(gpu, share, lambda: self.waiting.append(name), self.folder):
            self.at_work.append(name)
            if name in self.waiting:
                self.waiting.remove(name)
            self._ends[name].wait()
            self.at_work.remove(name)


@pytest.fixture
def workers(tmp_path: Path):
    made = Workers(tmp_path)
    yield made
    made.close()


def test_one_at_a_time(workers: Workers) -> None:
    for name in "abc":
        workers.begin(name, 1.0)
    assert workers.at_work == ["a"]
    workers.end("a", then=["b"] if "b" in workers.waiting[:1] else ["c"])


def test_two_halves_at_once_and_each_gpu_by_itself(workers: Workers) -> None:
    for name in "abc":
        workers.begin(name, 0.5)
    workers.begin("d", 1.0, gpu="1")
    assert sorted(workers.at_work) == ["a", "b", "d"]
    assert workers.waiting == ["c"]
    workers.end("a", then=["b", "c", "d"])


def test_who_asks_for_all_is_not_overtaken(workers: Workers) -> None:
    workers.begin("half", 0.5)
    workers.begin("all", 1.0)
    workers.begin("another half", 0.5)
    assert workers.at_work == ["half"]
    workers.end("half", then=["all"])
    workers.end("all", then=["another half"])


def test_who_is_killed_gives_it_back(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path), "1"]
    first, second = (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    told = [first.stdout.readline(), second.stdout.readline()]
    holder, waiter = (first, second) if told[0] == "works\n" else (second, first)
    assert sorted(told) == ["waits\n", "works\n"]
    holder.kill()
    assert waiter.stdout.readline() == "works\n"
    waiter.communicate("")
    holder.communicate()
    assert waiter.returncode == 0


def test_no_more_workers_than_can_work(tmp_path: Path, my_workers: Callable[[], list[int]]) -> None:
    with LocalGrid([], 3, tmp_path, most=lambda: 2) as grid:
        deadline = time.monotonic() + 20
        while (alive := [t.is_alive() for t in grid._threads]) != [True, True, False]:
            assert time.monotonic() < deadline, alive
            time.sleep(0.01)
    with LocalGrid([], 3, tmp_path) as grid:
        time.sleep(0.2)
        assert all(t.is_alive() for t in grid._threads)


def test_without_a_gpu_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zk0.federation.gpu import gpu_turn, takes_turns, useful_workers

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    training = TrainingSettings(device="cpu")
    assert not takes_turns(training)
    assert useful_workers(training) is None
    with gpu_turn(training, pytest.fail), gpu_turn(training, pytest.fail):
        assert list(tmp_path.iterdir()) == []
    assert takes_turns(TrainingSettings(device="cuda"))
    assert not takes_turns(TrainingSettings(device="cuda", gpu_share=0))
