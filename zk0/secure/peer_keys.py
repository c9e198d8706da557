"""The public keys of nodes as their owners exchange them: one JSON object for each node, in lines of a file."""

from pathlib import Path

from pydantic import ValidationError

from zk0.errors import SettingsError
from zk0.records import Record
from zk0.secure.messages import MAX_CLIENTS, Hex32
from zk0.settings.dataset_settings import SafeName

_MAX_BYTES = 400 * MAX_CLIENTS


class PeerKey(Record):
    """The public key with which a node signs its keys of secure aggregation, and its journal."""

    client: SafeName
    key: Hex32
    """64 hexadecimal digits, as in the node's `sent.pub`."""


def read_peer_keys(file: Path) -> dict[str, str]:
    """Return the keys in a file, by client: a line for each, as `zk0bot client keys show` prints it.

    Raises:
        SettingsError: the file has something else, or two keys of one client; all faults are named.
    """
    try:
        if (size := file.stat().st_size) > _MAX_BYTES:
            raise SettingsError(f"{file}: {size} bytes, expected at most {_MAX_BYTES}")
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise SettingsError(f"{file}: cannot be read ({e}); expected lines of `zk0bot client keys show`") from e
    found, faults = dict[str, str](), list[str]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            peer = PeerKey.model_validate_json(line)
        except ValidationError:
            faults.append(f"line {number} is no key of a client")
            continue
        if found.setdefault(peer.client, peer.key) != peer.key:
            faults.append(f"line {number}: another key of {peer.client}")
    if faults or not found:
        text = "; ".join(faults) or "no key in it"
        raise SettingsError(f"{file}: {text}; expected lines of `zk0bot client keys show`")
    return found
