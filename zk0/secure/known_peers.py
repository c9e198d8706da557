"""The identities of other clients, as a client first saw them: a server that shows others later is found out."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from zk0.errors import FederationError
from zk0.secure.messages import KeyAdvert
from zk0.storage.atomic import atomic_write_text

PEERS_FILE = "known_peers.json"
"""In a client's scratch folder: the keys of other clients."""


class KnownPeers:
    """The public key of each client's node, by the client's name, in a file of the client.

    The first key that is shown for a name is kept, unless its owner has given it before (`trust`), or the client takes
    part in sums of known clients only.

    Args:
        file: JSON; need not exist. A file beside it, with the suffix `.only`, says that no other client is accepted.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._only = file.with_suffix(".only")

    @property
    def accepts_others(self) -> bool:
        """Whether the client takes part in sums with clients whose keys it does not know."""
        return not self._only.exists()

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
                "ask its owner for the key, and run zk0bot client keys trust FILE --replace if it is new"
            )
        if new := {name: key for name, key in shown.items() if name not in known}:
            if not self.accepts_others:
                raise FederationError(
                    f"the sum has {', '.join(sorted(new))}, whose keys this client does not know; expected only "
                    f"{', '.join(sorted(known))}: get their keys from their owners, and run zk0bot client keys trust"
                )
            atomic_write_text(self._file, json.dumps(known | new, indent=1, sort_keys=True))

    def trust(self, keys: Mapping[str, str], *, replace: bool = False, only: bool | None = None) -> int:
        """Keep keys that came from their owners; return how many were not known.

        Args:
            keys: by client.
            replace: also where another key of a client is known.
            only: whether other clients are refused from now on; None: as before.

        Raises:
            FederationError: another key of a client is known, or a key is that of another client; nothing is kept.
        """
        known = self.read()
        if (other := sorted(n for n, key in keys.items() if known.get(n, key) != key)) and not replace:
            raise FederationError(
                f"{self._file} has another key of {', '.join(other)}: the server may have shown a false one, or the "
                "node has a new key; ask its owner, and give --replace if the file is right"
            )
        together = known | dict(keys)
        if len(set(together.values())) < len(together):
            twice = sorted(n for n, key in together.items() if list(together.values()).count(key) > 1)
            raise FederationError(f"{', '.join(twice)} would have the same key in {self._file}; each node has its own")
        atomic_write_text(self._file, json.dumps(together, indent=1, sort_keys=True))
        if only is not None:
            atomic_write_text(self._only, "") if only else self._only.unlink(missing_ok=True)
        return len(together.items() - known.items())
