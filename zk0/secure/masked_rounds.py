"""The last round of each session for which a client has masked an update: it masks none of an earlier round again."""

import json
from pathlib import Path

from zk0.errors import FederationError
from zk0.storage.atomic import atomic_write_text


class MaskedRounds:
    """Rounds by session, in a file that stays when a session ends: a sum of a round is made once.

    Args:
        file: JSON; need not exist.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def last(self, session: str) -> int:
        """Return the last round of a session; 0 where there is none.

        Raises:
            FederationError: the file is damaged.
        """
        return self._read().get(session, 0)

    def add(self, session: str, number: int) -> None:
        """Note a round before its masked update is sent.

        Raises:
            FederationError: a later round is noted already, or the file is damaged.
        """
        known = self._read()
        if (last := known.get(session, 0)) > number:
            raise FederationError(f"round {number}: this client has masked its update of round {last} already")
        if last < number:
            atomic_write_text(self._file, json.dumps(known | {session: number}, indent=1))

    def _read(self) -> dict[str, int]:
        if not self._file.is_file():
            return {}
        try:
            return {str(name): int(last) for name, last in json.loads(self._file.read_text(encoding="utf-8")).items()}
        except (ValueError, AttributeError, TypeError) as e:
            raise FederationError(f"{self._file}: not a list of rounds ({e}); restore it") from e
