"""Files that no later round needs are removed when a round is recorded."""

from pathlib import Path
from typing import Any

import pytest

from zk0.records import BufferedRound, Checkpoint, ClientAtWork, RoundRecord, ServerState
from zk0.settings.loading import parse_session
from zk0.settings.session import Session
from zk0.storage.round_files import remove_finished_round_files
from zk0.storage.session_folder import SessionFolder


def record(folder: SessionFolder, number: int) -> RoundRecord:
    """Write all files of a round and return its record."""
    state = folder.round_folder(number) / "server_momentum.safetensors"
    for file in (folder.weights(number), folder.sent_weights(number), state, folder.updates(number) / "a.safetensors"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    weights = Checkpoint(round=number, path=folder.relative(folder.weights(number)), digest="d" * 64, bytes=0)
    states = (ServerState(slot="momentum", path=folder.relative(state), digest="d" * 64, bytes=0),)
    return RoundRecord(round=number, checkpoint=weights, server_state=states, seconds=1, finished_at="")


def test_weights_from_which_clients_still_train_stay(tmp_path: Path) -> None:
    folder, finished = SessionFolder(tmp_path), list[RoundRecord]()
    at_work = {2: [2], 3: [2], 4: [2, 4], 5: [4]}
    kept = {3: [0, 1, 3], 4: [0, 1, 3, 4], 5: [0, 3, 5]}
    for number in range(6):
        clients = tuple(ClientAtWork(client=f"c{began}", began=began) for began in at_work.get(number, ()))
        buffered = BufferedRound(arrivals=(), at_work=clients, ready=())
        finished.append(record(folder, number).model_copy(update={"buffered": buffered}))
        remove_finished_round_files(folder, finished, session(), best=number)
        if number in kept:
            assert [n for n in range(6) if folder.weights(n).is_file()] == kept[number]
            assert [n for n in range(6) if folder.sent_weights(n).is_file()] == [n for n in kept[number] if n]


@pytest.mark.parametrize("keep_updates", [False, True])
def test_the_next_round_finds_what_it_needs(tmp_path: Path, keep_updates: bool) -> None:
    folder = SessionFolder(tmp_path)
    finished = [record(folder, number) for number in (1, 2)]
    settings = session(keep_updates=keep_updates, keep_weights=True)
    remove_finished_round_files(folder, finished, settings, best=1)
    found = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    expected = {"round-001/weights.safetensors", "round-001/updates/a.safetensors", "round-002/weights.safetensors"}
    expected |= {"round-002/sent.safetensors", "round-002/server_momentum.safetensors"}
    assert found == expected | ({"round-002/updates/a.safetensors"} if keep_updates else set())
    remove_finished_round_files(folder, finished, settings, best=1)


def session(**changes: Any) -> Session:
    clients = [{"name": n, "dataset": f"lab/{n}"} for n in "ab"]
    return parse_session(
        {"rounds": 6, "clients": clients, "evaluation": {"datasets": [{"dataset": "lab/c"}]}} | changes, "test"
    )


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, [0, 5, 6]),
        ({"keep_weights": True}, [0, 1, 2, 3, 4, 5, 6]),
        ({"checkpoint_interval": 2}, [0, 2, 4, 5, 6]),
        ({"rollout": {"tasks": ["lift-red"], "frequency": 3}}, [0, 3, 5, 6]),
    ],
)
def test_weights_are_kept_where_something_needs_them(tmp_path: Path, changes: dict[str, Any], kept: list[int]) -> None:
    folder, finished = SessionFolder(tmp_path), list[RoundRecord]()
    for number in range(7):
        finished.append(record(folder, number))
        remove_finished_round_files(folder, finished, session(**changes), best=min(number, 5))
        assert folder.weights(number).is_file()
    assert [n for n in range(7) if folder.weights(n).is_file()] == kept
