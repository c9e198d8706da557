"""The order of arrivals that a session repeats: that of another session's ledger."""

from pathlib import Path

from zk0.audit.ledger import Ledger
from zk0.errors import SettingsError
from zk0.records import Arrival
from zk0.settings.session import Session
from zk0.storage.session_folder import SessionFolder


def recorded_arrivals(session: Session, number: int) -> tuple[Arrival, ...]:
    """Return the arrivals of a round in the session that `buffer.order_of` names.

    None where the setting is unset, and in rounds that the other session has not finished: their order is free.

    Raises:
        SettingsError: the other session has no buffered round.
        LedgerError: its ledger contradicts itself.
    """
    if (folder := session.buffer.order_of) is None:
        return ()
    history = Ledger(SessionFolder(Path(folder)).ledger).read()
    if not history or history[-1].buffered is None:
        raise SettingsError(f"buffer.order_of {folder}: no buffered round; expected the folder of a buffered session")
    found = history[number].buffered if number < len(history) else None
    return found.arrivals if found else ()
