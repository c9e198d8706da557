"""The scripts that make the base policy: what they record, and that an interrupted training ends as any other."""

import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from zk0.simulator.tasks import find_task

SCRIPTS = Path("scripts/base").resolve()
SESSIONS = Path("deployments/sessions")


@pytest.fixture(scope="module", autouse=True)
def script_path() -> Iterator[None]:
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def record() -> ModuleType:
    import record as module

    return module


class _Interrupted(Exception):
    """Ends a training as a signal would."""


def _train(file: Path, stop_after: int | None = None, steps: int = 30) -> list[float]:
    """Weights after training on random batches; `stop_after` raises after that many of them."""
    import resumable

    torch.manual_seed(5)
    layer = nn.Linear(3, 1)
    conditions = {"steps": steps}
    training = resumable.ResumableTraining(
        nn.ModuleList([layer]), file, conditions, 0.01, steps, betas=(0.9, 0.99), warmup=0.1
    )
    made = 0

    def loss_of_batch() -> Tensor:
        nonlocal made
        if made == stop_after:
            raise _Interrupted
        made += 1
        return layer(torch.randn(4, 3)).pow(2).mean()

    training.run(loss_of_batch)
    return torch.cat([p.flatten() for p in layer.parameters()]).tolist()


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resumable

    expected = _train(tmp_path / "whole.pt")
    monkeypatch.setattr(resumable, "SAVE_SECONDS", 0)
    for stop in (7, 4, 1):
        with pytest.raises(_Interrupted):
            _train(tmp_path / "state.pt", stop)
    assert _train(tmp_path / "state.pt") == expected
    assert _train(tmp_path / "state.pt", 0) == expected, "nothing is left to do"


def test_a_state_of_another_training_is_refused(tmp_path: Path) -> None:
    _train(tmp_path / "state.pt")
    with pytest.raises(SystemExit, match=r"started with .*30.*expected .*31.*choose another --work"):
        _train(tmp_path / "state.pt", steps=31)


def test_recordings_are_balanced_and_have_seeds_of_their_own(record: ModuleType, tmp_path: Path) -> None:
    shards = list(record.plan_shards(SCRIPTS / "training_tasks.toml", 3, tmp_path))
    tasks = {shard.task for shard in shards}
    assert len(shards) == 3 * len(tasks) == len({shard.path for shard in shards})
    assert {shard.task for shard in shards[: len(tasks)]} == tasks, "a stopped recording has every task"
    starts = sorted(shard.first_seed for shard in shards)
    assert min(after - before for before, after in pairwise(starts)) >= 1000
    assert {find_task(task).motion for task in tasks} == {"lift", "place", "stack"}


def test_no_client_trains_on_a_task_of_the_base_policy(record: ModuleType, tmp_path: Path) -> None:
    tasks = {shard.task for shard in record.plan_shards(SCRIPTS / "training_tasks.toml", 1, tmp_path)}
    assert not [task for task in tasks if find_task(task).cube in ("red", "yellow")]
    used = set()
    for file in SESSIONS.glob("*.toml"):
        clients = tomllib.loads(file.read_text(encoding="utf-8")).get("clients", [])
        used |= {client["dataset"].removeprefix("sim:") for client in clients}
    assert {"lift-red", "stack-red-blue"} <= used
    assert not tasks & used
