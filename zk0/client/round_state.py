"""What a client keeps of a session: its updates, and its control variate, quantization error or personal weights."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from time import time

from zk0.settings.plans import ClientPlan

_SESSIONS = "sessions"
LOCAL_TRAINING = "local-training"
"""Folder in a client's scratch folder: what it keeps of the models that it trains alone, for its joining report."""


class RoundState:
    """One weights file for each round of a session; a repeated round reads the same earlier file again.

    Args:
        scratch: the client's scratch folder.
        plan: of the current round.
        kind: what the files hold: `control`, `quantization-error` or `personal`.
    """

    def __init__(self, scratch: Path, plan: ClientPlan, kind: str) -> None:
        self._folder, self._kind, self._round = session_state_folder(scratch, plan.terms.session), kind, plan.round

    @property
    def current(self) -> Path:
        """The file that this round writes."""
        return self._file(self._round)

    @property
    def previous(self) -> Path | None:
        """The file of the client's last round before this one; None if there is none."""
        number = max(self._previous_rounds(), default=None)
        return None if number is None else self._file(number)

    @property
    def latest(self) -> Path | None:
        """The file of this round, else of the client's last round before it; None if there is none."""
        return self.current if self.current.is_file() else self.previous

    def remove_older(self) -> None:
        """Remove the files that neither this round nor the next one reads."""
        for number in sorted(self._previous_rounds())[:-1]:
            self._file(number).unlink(missing_ok=True)

    def _previous_rounds(self) -> Iterator[int]:
        for file in self._folder.glob(f"{self._kind}-*.safetensors"):
            if (number := int(file.stem.removeprefix(f"{self._kind}-"))) < self._round:
                yield number

    def _file(self, number: int) -> Path:
        return self._folder / f"{self._kind}-{number:03d}.safetensors"


def remove_session_state(scratch: Path, session: str) -> None:
    """Remove everything that a client kept of a finished session: its updates, and what it kept between rounds."""
    rmtree(session_state_folder(scratch, session), ignore_errors=True)


def remove_old_sessions(scratch: Path, seconds: float) -> None:
    """Remove what the client kept of sessions of which it has written nothing for so many seconds."""
    limit = time() - seconds
    for folder in (*(scratch / _SESSIONS).glob("*"), *(scratch / LOCAL_TRAINING / _SESSIONS).glob("*")):
        if max(path.stat().st_mtime for path in (folder, *folder.rglob("*"))) < limit:
            rmtree(folder, ignore_errors=True)


def session_state_folder(scratch: Path, session: str) -> Path:
    """Named by a digest, because a session's name comes from the server and must not act as a path."""
    return scratch / _SESSIONS / hashlib.sha256(session.encode()).hexdigest()[:16]
