"""Holds a session's folder within the disk space that the session names at its start."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from zk0.errors import DiskFull
from zk0.records import Record
from zk0.resources.disk_text import gigabytes
from zk0.resources.disk_use import DiskUse
from zk0.settings.session import Session
from zk0.storage.atomic import atomic_write_text

ANNOUNCED_FILE = "disk_use.json"
"""File in the session's folder: the disk space by purpose that the session named at its start."""


class FolderShare(Record):
    """What one file or folder inside a folder holds."""

    name: str
    bytes: int


def announce_disk_use(folder: Path, use: DiskUse) -> None:
    """Store the disk space that a session has named in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / ANNOUNCED_FILE, use.model_dump_json(indent=2))


def disk_limit(session: Session, folder: Path) -> int | None:
    """Return the most that the session's folder may hold in bytes; None: without limit.

    It is `disk_limit_gb`, or else the most that the session named at its start. Where any node may take part, that
    counts `federation.min_updates` of them and is no limit.
    """
    if session.disk_limit_gb is not None:
        return int(session.disk_limit_gb * 1e9)
    if not session.client_names():
        return None
    try:
        announced = (folder / ANNOUNCED_FILE).read_bytes()
    except FileNotFoundError:
        return None
    return DiskUse.model_validate_json(announced).peak_bytes("session")


def check_disk_limit(session: Session, folder: Path) -> None:
    """Check that the session's folder holds no more than it may.

    Raises:
        DiskFull: it holds more; names the largest files and folders in it.
    """
    if (limit := disk_limit(session, folder)) is None:
        return
    shares = list(folder_shares(folder))
    if (found := sum(share.bytes for share in shares)) <= limit:
        return
    largest = ", ".join(f"{share.name} {gigabytes(share.bytes)}" for share in shares[:3])
    source = "at its start the session named" if session.disk_limit_gb is None else "disk_limit_gb allows"
    raise DiskFull(
        f"{folder}: holds {gigabytes(found)} and {source} up to {gigabytes(limit)} (largest: {largest}); remove what "
        f"is not the session's, or allow more with --set disk_limit_gb={found / 0.8e9:.2g}"
    )


def folder_shares(folder: Path) -> Iterator[FolderShare]:
    """Yield what each entry of a folder holds, the largest first; a file with several names counts once."""
    sizes, seen = dict[str, int](), set[int]()
    for file in sorted(folder.rglob("*")):
        with suppress(FileNotFoundError):  # a temporary file that has its name now
            state = file.lstat()
            if file.is_file() and not file.is_symlink() and state.st_ino not in seen:
                seen.add(state.st_ino)
                name = file.relative_to(folder).parts[0]
                sizes[name] = sizes.get(name, 0) + state.st_size
    for name in sorted(sizes, key=lambda one: (-sizes[one], one)):
        yield FolderShare(name=name, bytes=sizes[name])
