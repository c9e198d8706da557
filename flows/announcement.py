"""Where the server of `zk0 ui` is, told to every `prefect` command that is run in the same folder.

Prefect reads `prefect.toml` in the working directory. PREFECT_API_URL in the environment comes before it.
"""

import os
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MARK = "# written by `zk0 ui`"


@contextmanager
def announced(root: Path, api_url: str) -> Iterator[bool]:
    """Whether `prefect.toml` names the server meanwhile; False where someone else's file is there already."""
    file = root / "prefect.toml"
    if file.exists() and not _is_ours(file):
        yield False
        return
    half = root / "prefect.toml.tmp"
    half.write_text(
        f'{_MARK} (process {os.getpid()}), which removes it when it stops\n[api]\nurl = "{api_url}"\n', encoding="utf-8"
    )
    half.replace(file)
    try:
        yield True
    finally:
        file.unlink(missing_ok=True)


def forget_stale(root: Path) -> None:
    """Remove an announcement that outlived its server, as after a power cut; without it runs need no server."""
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
    return file.is_file() and file.read_text(encoding="utf-8").startswith(_MARK)
