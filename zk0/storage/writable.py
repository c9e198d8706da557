"""Checks that files can be written into a folder, or read from it, before anything is made for a session."""

import os
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
    existing = next(path for path in (folder, *folder.parents) if _is_seen(path))
    try:
        with tempfile.TemporaryFile(dir=existing):
            return
    except OSError as e:
        where = f"{folder}" if existing == folder else f"{folder} cannot be made, because {existing}"
        raise SettingsError(f"{setting}: {where} cannot be written ({e.strerror}); choose another folder") from e


def check_readable(folder: Path, setting: str) -> None:
    """Check that the files of a folder can be read; a folder that does not exist has none.

    Args:
        folder: it need not exist.
        setting: that names the folder, for the error.

    Raises:
        SettingsError: this user may not read it, or may not look into a folder that it lies in.
    """
    try:
        with os.scandir(folder):
            return
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as e:
        raise SettingsError(f"{setting}: {folder} cannot be read ({e.strerror}); choose another folder") from e


def _is_seen(path: Path) -> bool:
    """Return whether a path exists, as far as this user may know."""
    try:
        return path.exists()
    except OSError:
        return False
