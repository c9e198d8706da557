"""What a flow reads and writes in the session's folder between its steps; its disk may be away for a moment."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.events import log_line
from tasks.retry import DISK_RETRIES
from zk0.audit.policy_digests import recorded_policy_files
from zk0.records import RoundRecord
from zk0.rules.selection import select_round
from zk0.settings.session import Session
from zk0.storage.session_folder import SessionFolder

if TYPE_CHECKING:
    from zk0.evaluation.session_setup import SessionSetup


@task(task_run_name="create the session's folder", cache_policy=NO_CACHE, **DISK_RETRIES)
def create_session_folder(session: Session, folder: str) -> None:
    """Make the folder and write session.toml; a second call with the same settings changes nothing.

    Raises:
        SettingsError: the folder cannot be written, or holds a session with other settings.
    """
    SessionFolder(Path(folder)).create(session)


@task(task_run_name="read finished rounds", cache_policy=NO_CACHE, **DISK_RETRIES)
def read_recorded_rounds(folder: str) -> tuple[RoundRecord, ...]:
    """Return the recorded rounds, after a check of the last one's files.

    Raises:
        CheckpointError: a file's digest differs.
        LedgerError: the ledger contradicts itself.
    """
    from zk0.audit.finished_rounds import read_finished_rounds

    return read_finished_rounds(SessionFolder(Path(folder)))


@task(task_run_name="read the session setup", cache_policy=NO_CACHE, **DISK_RETRIES)
def read_setup(folder: str) -> "SessionSetup | None":
    """Return the setup of a session that resumes; None if the session is new."""
    from zk0.evaluation.session_setup import SessionSetup

    return SessionSetup.read_from(SessionFolder(Path(folder)).setup)


@task(task_run_name="write the session setup", cache_policy=NO_CACHE, **DISK_RETRIES)
def write_setup(folder: str, setup: "SessionSetup") -> None:
    """Write the setup of a new session; for one that resumes, check that this setup equals the written one.

    Raises:
        DatasetError: episodes of a client or of an evaluation set have changed.
        PolicyError: the policy has changed.
    """
    setup.write_or_verify(SessionFolder(Path(folder)).setup)


@task(task_run_name="select the session's policy", cache_policy=NO_CACHE, **DISK_RETRIES)
def unsaved_policies(session: Session, folder: str, history: Sequence[RoundRecord]) -> tuple[int, ...]:
    """Return which of the best and the last round have no saved policy with recorded digests; log the selection."""
    from zk0.storage.results import read_rollouts

    here = SessionFolder(Path(folder))
    selection = select_round(session, history, read_rollouts(here.rollouts_folder))
    log_line(f"policy of the session: round {selection.round} ({selection.reason})")
    wanted = sorted({selection.best, history[-1].round})
    return tuple(
        number
        for number in wanted
        if not here.checkpoint(number).is_dir() or not recorded_policy_files(here, history[number])
    )
