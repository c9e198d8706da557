"""The saved policy of a session: that of its best or last round, as its settings select it."""

from pathlib import Path
from typing import NamedTuple

from zk0.audit.ledger import Ledger
from zk0.errors import SettingsError
from zk0.rules.selection import select_round
from zk0.storage.results import read_rollouts
from zk0.storage.session_folder import SessionFolder


class KeptPolicy(NamedTuple):
    """The folder of a session's policy, its round, and why it is this round's."""

    folder: Path
    round: int
    reason: str


def find_kept_policy(here: SessionFolder) -> KeptPolicy:
    """Return the saved policy of the round that the session's settings select among its finished rounds.

    Raises:
        SettingsError: there is no finished round, or its policy is not saved; names the folders of those that are.
        LedgerError: the ledger contradicts itself.
        EvaluationError: a result of an attempt cannot be read.
    """
    session, history = here.read_session(), Ledger(here.ledger).read()
    if not history:
        raise SettingsError(f"{here.path}: no finished round, so it has no policy yet; wait for its first rounds")
    selected = select_round(session, history, read_rollouts(here.rollouts_folder))
    if (folder := here.checkpoint(selected.round)).is_dir():
        return KeptPolicy(folder, selected.round, selected.reason)
    saved = [str(found) for r in history if (found := here.checkpoint(r.round)).is_dir()]
    raise SettingsError(
        f"{here.path}: its policy is that of round {selected.round} ({selected.reason}), which is not saved; "
        f"{f'give one of {", ".join(saved)}' if saved else 'no round is saved yet'}"
    )
