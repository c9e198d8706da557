"""The identities of other clients, as a client first saw them: a server that shows others later is found out."""

import json
from collections.abc import Iterable
from pathlib import Path

from zk0.errors import FederationError
from zk0.secure.messages import KeyAdvert
from zk0.storage.atomic import atomic_write_text


class KnownPeers:
    """The public key of each client's node, by the client's name, in a file of the client.

    The first key of a name is believed and kept. Whoever wants to trust the server from the first round on less than
    that writes the file beforehand, with keys that came from their owners.

    Args:
        file: JSON; need not exist.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> dict[str, str]:
        """Return the known keys, 64 hexadecimal digits, by name.

        Raises:
            FederationError: the file is not such a list.
        """
        if not self._file.is_file():
            return {}
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            return {str(name): str(key) for name, key in found.items()}
        except (ValueError, AttributeError) as e:
            raise FederationError(f"{self._file}: not the known keys of other clients ({e}); restore it") from e

    def check(self, adverts: Iterable[KeyAdvert]) -> None:
        """Check that clients have the keys that they had before, and keep those of new ones.

        Raises:
            FederationError: a client has another key; nothing is kept then.
        """
        known = self.read()
        shown = {advert.client: advert.identity for advert in adverts}
        if other := sorted(name for name, key in shown.items() if known.get(name, key) != key):
            raise FederationError(
                f"the server shows another key of {', '.join(other)} than before; expected the one in {self._file}: "
                "ask its owner for the key, and write it there if it is new"
            )
        if new := {name: key for name, key in shown.items() if name not in known}:
            atomic_write_text(self._file, json.dumps(known | new, indent=1, sort_keys=True))
