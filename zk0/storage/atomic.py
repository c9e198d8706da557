"""Write files and folders atomically: a reader finds the old content or all of the new one, never a part.

Everything that zk0 does not append to goes through this module. The content is written under a temporary name beside
the target, `.NAME.XXXXXXXX.tmp`, flushed to the disk, and renamed. A killed process leaves the target as it was and
the temporary file, which `remove_temporary_files` deletes. Logs that grow line by line are appended to instead
(`zk0.audit.hash_chain`).
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from zk0.errors import Zk0Error
from zk0.storage.disk_space import translate_disk_full


@contextmanager
def atomic_path(
    path: Path,
    *,
    durable: bool = True,
    mode: int | None = None,
    keep_suffix: bool = False,
    error: type[Zk0Error] | None = None,
) -> Iterator[Path]:
    """Yield a temporary path; the file that the block writes there replaces `path` when the block ends.

    The temporary name is unique, so concurrent writers do not disturb each other: the last one to finish wins. Where
    the block raises, or leaves no file, `path` stays as it was and the temporary file is removed.

    Args:
        path: the target; missing parent folders are made.
        durable: flush the file and its name to the disk, so that it survives a power cut. Without, it survives the end
            of any process, but may be cut short by a power cut: for files that are made again, or verified when read.
        mode: permissions; the file exists with them, and empty, when the block begins. None: as the umask has it.
        keep_suffix: give the temporary name the suffix of `path`, for encoders that choose a format by it.
        error: raised instead of an OSError other than a full disk.

    Raises:
        DiskFull: the disk is full.
    """
    temporary = _temporary_path(path, path.suffix if keep_suffix else "")
    try:
        with translate_disk_full(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if mode is not None:
                os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
            yield temporary
            if temporary.exists():
                if durable:
                    _sync(temporary)
                temporary.replace(path)
    except OSError as e:
        if error is None:
            raise
        raise error(f"{path}: cannot be written ({e.strerror or e}); choose another folder") from e
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            temporary.unlink()
    if durable:
        sync_folder(path.parent)


def atomic_write_bytes(
    path: Path, content: bytes, *, durable: bool = True, mode: int | None = None, error: type[Zk0Error] | None = None
) -> None:
    """Write a file atomically; the arguments and errors are those of `atomic_path`."""
    with atomic_path(path, durable=durable, mode=mode, error=error) as temporary:
        temporary.write_bytes(content)


def atomic_write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a UTF-8 text file atomically; the arguments and errors are those of `atomic_path`."""
    atomic_write_bytes(path, text.encode(), durable=durable)


@contextmanager
def atomic_folder(
    folder: Path,
    *library_errors: type[Exception],
    existing: Literal["refuse", "replace", "keep"] = "refuse",
) -> Iterator[Path]:
    """Yield a temporary path; the folder that the block makes there is renamed to `folder` when the block ends.

    Where the block raises, the temporary folder is removed. All of its files are flushed to the disk first.

    Args:
        folder: the target; missing parent folders are made.
        library_errors: errors in whose text a library reports a full disk (see `translate_disk_full`).
        existing: what happens to a folder of this name that is there at the end. "refuse": the error is raised that the
            system gives; "replace": it is removed; "keep": it stays, and the new one is removed.

    Raises:
        DiskFull: the disk is full.
    """
    temporary = _temporary_path(folder)
    try:
        with translate_disk_full(folder, *library_errors):
            folder.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _sync_tree(temporary)
        _put_in_place(temporary, folder, existing)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(folder.parent)


def remove_temporary_files(folder: Path) -> None:
    """Remove what killed writers left in a folder and below it; no writer may be at work there."""
    for left in [*folder.rglob(".*.tmp"), *folder.rglob(".*.tmp.*")]:
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, so that a new file survives a power cut; a no-op where unsupported."""
    with suppress(OSError):
        _sync(folder)


def _temporary_path(path: Path, suffix: str = "") -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp{suffix}")


def _put_in_place(temporary: Path, folder: Path, existing: str) -> None:
    if existing == "replace" and folder.exists():
        folder.rename(old := _temporary_path(folder))
        temporary.rename(folder)
        shutil.rmtree(old)
        return
    try:
        temporary.rename(folder)
    except OSError:
        if existing != "keep" or not folder.is_dir():
            raise


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name))
        sync_folder(Path(parent))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
