"""The sums that a client has agreed to in all sessions: two of the same updates must be of the same clients."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zk0.errors import FederationError
from zk0.secure.messages import SecureRound
from zk0.storage.atomic import atomic_write_text

_MAX_KEPT = 5000


class AgreedSums:
    """Whose updates were summed, by the weights and the seed that they began from.

    From the same weights with the same seed a client trains the same update, in whatever session. So the difference of
    two sums shows the updates of those clients that are in one of them only.

    Args:
        file: JSON; need not exist.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def agree(self, common: SecureRound, survivors: Sequence[str]) -> None:
        """Note a sum before the client's consent is sent; the oldest ones are forgotten.

        Raises:
            FederationError: updates from these weights with this seed were summed for other clients, or the file is
                damaged.
        """
        sums, key, clients = self._read(), f"{common.global_digest} {common.seed}", _digest(survivors)
        if (known := sums.get(key)) is None:
            entry = {"session": common.session, "round": common.round, "clients": clients}
            kept = dict([*sums.items(), (key, entry)][-_MAX_KEPT:])
            atomic_write_text(self._file, json.dumps(kept, indent=1))
        elif known["clients"] != clients:
            raise FederationError(
                f"session {known['session']}, round {known['round']}, has summed updates that began from the same "
                f"weights with the same seed, of other clients than {', '.join(survivors)}: the difference of both "
                f"sums would show single updates. Start a session with another seed (now {common.seed})"
            )

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self._file.is_file():
            return {}
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            return {
                str(key): {name: one[name] for name in ("session", "round", "clients")} for key, one in found.items()
            }
        except (ValueError, AttributeError, TypeError, KeyError) as e:
            raise FederationError(f"{self._file}: not a list of sums ({type(e).__name__}: {e}); restore it") from e


def _digest(clients: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(sorted(clients)).encode()).hexdigest()
