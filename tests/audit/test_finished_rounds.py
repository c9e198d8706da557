"""A session resumes only from the weights and the server state that its ledger names."""

from pathlib import Path

import numpy as np
import pytest

from zk0.audit.finished_rounds import read_finished_rounds
from zk0.audit.ledger import Ledger
from zk0.errors import CheckpointError
from zk0.records import Checkpoint, RoundRecord, ServerState
from zk0.storage.session_folder import SessionFolder
from zk0.weights.writer import save_weights


@pytest.fixture
def folder(tmp_path: Path) -> SessionFolder:
    """A session with rounds 0 and 1."""
    session = SessionFolder(tmp_path)
    for number in range(2):
        state = session.round_folder(number) / "server_momentum.safetensors"
        target = session.weights(number)
        (digest, size), (state_digest, state_size) = (
            save_weights(path, {"w": np.full(3, value, np.float32)}) for value, path in ((1, target), (2, state))
        )
        weights = Checkpoint(round=number, path=session.relative(target), digest=digest, bytes=size)
        states = (ServerState(slot="momentum", path=session.relative(state), digest=state_digest, bytes=state_size),)
        record = RoundRecord(round=number, checkpoint=weights, server_state=states, seconds=1, finished_at="")
        Ledger(session.ledger).append(record)
    return session


def test_finished_rounds_are_read_and_temporary_files_removed(folder: SessionFolder) -> None:
    left = folder.round_folder(1) / ".weights.safetensors.0a1b2c3d.tmp"
    left.touch()
    assert [record.round for record in read_finished_rounds(folder)] == [0, 1]
    assert not left.exists()


def test_a_new_session_has_no_finished_round(tmp_path: Path) -> None:
    assert read_finished_rounds(SessionFolder(tmp_path)) == ()


@pytest.mark.parametrize("name", ["weights", "server_momentum"])
def test_other_files_than_the_recorded_ones_are_refused(folder: SessionFolder, name: str) -> None:
    save_weights(folder.round_folder(1) / f"{name}.safetensors", {"w": np.full(3, 7, np.float32)})
    with pytest.raises(CheckpointError, match=r"round 1 cannot be resumed: .*digest"):
        read_finished_rounds(folder)
