"""The rounds of a session that are finished, from which a resumed session continues."""

from zk0.audit.ledger import Ledger
from zk0.errors import CheckpointError
from zk0.records import Checkpoint, RoundRecord, ServerState
from zk0.storage.session_folder import SessionFolder
from zk0.weights.digests import check_weights


def read_finished_rounds(folder: SessionFolder) -> tuple[RoundRecord, ...]:
    """Return the recorded rounds, after a check that the last one's weights and server state are the recorded ones.

    Temporary files that a killed process left are removed first.

    Raises:
        CheckpointError: a file's digest differs.
        LedgerError: the ledger contradicts itself.
    """
    folder.remove_unfinished_files()
    history = Ledger(folder.ledger).read()
    if history:
        last = history[-1]
        files: list[Checkpoint | ServerState] = [last.checkpoint, *last.server_state]
        try:
            for file in files:
                check_weights(folder.path / file.path, file.digest)
        except CheckpointError as e:
            raise CheckpointError(
                f"round {last.round} cannot be resumed: {e}; restore the file or start a new session"
            ) from e
    return history
