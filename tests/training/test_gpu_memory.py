"""Processes give back the memory that they keep on a GPU when another one begins to use it; no GPU is needed."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zk0.training.gpu_memory import ReservedMemory

KEEPER = """
import sys
from pathlib import Path
from zk0.training.gpu_memory import ReservedMemory
memory = ReservedMemory(Path(sys.argv[1]), "0", lambda: print("gives back", flush=True))
for line in sys.stdin:
    memory.claim()
    print("uses it", flush=True)
"""


class Keeper:
    """A process that begins to use the GPU as often as the test says."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-c", KEEPER, str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def use(self) -> None:
        self.process.stdin.write("use\n")
        self.process.stdin.flush()
        assert self.line() == "uses it"

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def end(self) -> str:
        """End the process; what it had still to say."""
        return self.process.communicate()[0]


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Callable[[], Keeper]]:
    started = []

    def start() -> Keeper:
        started.append(Keeper(tmp_path))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


def test_alone_nothing_is_given_back(keeper: Callable[[], Keeper]) -> None:
    only = keeper()
    for _ in range(3):
        only.use()
    assert only.end() == ""


def test_each_gives_back_when_the_other_begins(keeper: Callable[[], Keeper]) -> None:
    first, second = keeper(), keeper()
    first.use()
    second.use()
    assert first.line() == "gives back"  # before the second process went on
    first.use()
    assert second.line() == "gives back"
    assert first.end() == second.end() == ""


def test_another_gpu_and_a_killed_process_do_not_matter(tmp_path: Path, keeper: Callable[[], Keeper]) -> None:
    first, second = keeper(), keeper()
    first.use()
    ReservedMemory(tmp_path, "1", pytest.fail).claim()
    second.process.kill()
    second.process.wait()
    first.use()
    assert first.end() == ""
    (left,) = tmp_path.glob("0.memory.*")
    assert left.suffix == f".{first.process.pid}"
    third = keeper()
    third.use()
    assert [file.suffix for file in tmp_path.glob("0.memory.*")] == [f".{third.process.pid}"]


def test_who_takes_a_policy_on_a_gpu_claims_its_memory(
    policy: Any, recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny policy is built on the CPU, as if it were on a GPU."""
    from zk0.training import cached_policy

    monkeypatch.setattr(cached_policy, "_cached", {})
    monkeypatch.setattr(cached_policy, "build_policy", lambda *_: policy)
    memory = ReservedMemory(tmp_path / "locks", "0", pytest.fail)
    monkeypatch.setattr(cached_policy, "_gpu_memory", lambda: memory)
    cached_policy.cached_policy(recipe, tmp_path, "cpu")
    assert list((tmp_path / "locks").iterdir()) == []
    cached_policy.cached_policy(recipe, tmp_path, "cuda")
    assert (tmp_path / f"locks/0.memory.{os.getpid()}").is_file()
