"""`prefect.toml` in the clone's root, by which `prefect` commands in that folder find the server of `zk0 ui`.

Prefect reads `prefect.toml` in the working directory. PREFECT_API_URL in the environment takes precedence.
"""

import os
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zk0.storage.atomic import atomic_write_bytes

_HEADER = "# written by `zk0 ui`"


@contextmanager
def prefect_toml_written(root: Path, api_url: str, api_key: str = "") -> Iterator[bool]:
    """Write `prefect.toml` with address and key of the API for the block, and remove it afterwards.

    Only its owner can read the file.

    Yields True, or False where a file that `zk0 ui` did not write exists; that one stays as it is.
    """
    file = root / "prefect.toml"
    if file.exists() and not _is_ours(file):
        yield False
        return
    comment = f"{_HEADER} (process {os.getpid()}), which removes it when it stops"
    key = f'auth_string = "{api_key}"\n' if api_key else ""
    text = f'{comment}\n[api]\nurl = "{api_url}"\n{key}'
    atomic_write_bytes(file, text.encode(), durable=False, mode=0o600)
    try:
        yield True
    finally:
        file.unlink(missing_ok=True)


def remove_stale_prefect_toml(root: Path) -> None:
    """Remove a `prefect.toml` of `zk0 ui` whose server no longer runs, as after a power cut.

    Without the file, `zk0 run` starts a server of its own.
    """
    file = root / "prefect.toml"
    if not _is_ours(file):
        return
    url = tomllib.loads(file.read_text(encoding="utf-8"))["api"]["url"]
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        direct.open(f"{url}/health", timeout=5).close()
    except ConnectionRefusedError:
        file.unlink(missing_ok=True)
    except OSError as e:
        if isinstance(getattr(e, "reason", None), ConnectionRefusedError):
            file.unlink(missing_ok=True)


def _is_ours(file: Path) -> bool:
    return file.is_file() and file.read_text(encoding="utf-8").startswith(_HEADER)
