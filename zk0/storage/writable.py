"""Checks that files can be written into a folder before anything is made for a session."""

import tempfile
from pathlib import Path

from zk0.errors import SettingsError


def check_writable(folder: Path, setting: str) -> None:
    """Check that files can be written into a folder, or that it can be made; nothing is left behind.

    Args:
        folder: it need not exist.
        setting: that names the folder, for the error.

    Raises:
        SettingsError: files cannot be written there.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return
    except OSError as e:
        where = f"{folder}" if existing == folder else f"{folder} cannot be made, because {existing}"
        raise SettingsError(f"{setting}: {where} cannot be written ({e.strerror}); choose another folder") from e
