"""The user's home folder, in paths that begin with `~`."""

import os
from pathlib import Path

from zk0.errors import SettingsError


def expand_home(path: Path | str) -> Path:
    """Return a path with the user's home in place of a leading `~`; any other path as it is, home or not.

    Raises:
        SettingsError: the path begins with `~`, and there is no such home.
    """
    found = Path(path)
    if not found.parts or not found.parts[0].startswith("~"):
        return found
    home = os.environ.get("HOME")
    if found.parts[0] == "~" and home is not None and not Path(home).is_absolute():
        raise SettingsError(f"HOME is {home!r}, expected the path of a folder from the root; set it, or unset it")
    try:
        return found.expanduser()
    except RuntimeError as e:
        if found.parts[0] != "~":
            raise SettingsError(f"{path}: there is no user {found.parts[0][1:]}; expected another path") from e
        raise SettingsError(
            f"{path}: HOME is not set, and user {os.getuid()} has no entry in the user database; "
            "set HOME to a folder that can be written, or give a path without ~"
        ) from e


def has_home(path: str) -> bool:
    """Return whether `expand_home` of a path succeeds."""
    try:
        expand_home(path)
    except SettingsError:
        return False
    return True
