"""The key of the Prefect API of `zk0 ui`: made at the first start, readable by its owner only."""

from pathlib import Path
from secrets import token_urlsafe

from zk0.errors import SettingsError
from zk0.storage.atomic import atomic_write_bytes

_FILE = "api.key"


def api_key_file(home: Path) -> Path:
    """Return the file of the key in a home of Prefect."""
    return home / "zk0-ui" / _FILE


def read_or_make_api_key(home: Path) -> str:
    """Return the key, which Prefect calls `auth_string`; it is made at the first call.

    Raises:
        SettingsError: other users can read the file, or it holds no key.
    """
    file = api_key_file(home)
    if not file.exists():
        atomic_write_bytes(file, f"zk0:{token_urlsafe(32)}\n".encode(), mode=0o600)
    if file.stat().st_mode & 0o077:
        raise SettingsError(f"{file}: other users can read it; delete it, and the next start makes a new key")
    key = file.read_text(encoding="utf-8").strip()
    if ":" not in key:
        raise SettingsError(f"{file}: found no key (NAME:SECRET); delete it, and the next start makes a new one")
    return key
