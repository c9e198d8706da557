"""Files of a round that nothing needs once the round is recorded."""

from collections.abc import Sequence

from zk0.records import RoundRecord
from zk0.settings.session import Session
from zk0.storage.session_folder import SessionFolder


def remove_finished_round_files(
    folder: SessionFolder, finished: Sequence[RoundRecord], session: Session, best: int
) -> None:
    """Remove the last round's update files, and of the rounds before it what nothing needs any more.

    That are the sent weights, the server's state, and the global weights (`Session.keeps_weights_of`). Weights from
    which clients of a buffered round still train stay.

    Args:
        folder: the session's folder.
        finished: all recorded rounds; the next round needs weights and state of the last one.
        session: says what to keep.
        best: the best round so far; its weights are kept.
    """
    if not session.keep_updates:
        for file in folder.updates(finished[-1].round).glob("*.safetensors"):
            file.unlink(missing_ok=True)
    buffered = finished[-1].buffered
    starts = {one.began - 1 for one in buffered.at_work} if buffered else set()
    for record in finished[:-1]:
        if record.round not in starts:
            folder.sent_weights(record.round).unlink(missing_ok=True)
            if record.round != best and not session.keeps_weights_of(record.round):
                folder.weights(record.round).unlink(missing_ok=True)
        for state in record.server_state:
            (folder.path / state.path).unlink(missing_ok=True)
