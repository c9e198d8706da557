"""SHA-256 of the files of a folder, in the format of `sha256sum`: anyone can check them without zk0."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path

from zk0.errors import CheckpointError
from zk0.storage.atomic import atomic_write_text
from zk0.storage.listing import files_below

SUMS_FILE = "SHA256SUMS"
"""Name of the list; it names every other file of the folder, and is checked by `sha256sum --check SHA256SUMS`."""
_MAX_SUMS_BYTES = 10_000_000
_HEX_DIGITS = 64


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits. The Hub names large files by it (oid of Git LFS)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_folder(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file by its path relative to the folder, but of the list and of hidden files."""
    return {path: sha256_of_file(folder / path) for path in _listed_paths(folder)}


def sums_text(digests: Mapping[str, str]) -> str:
    """Return the content of the list.

    >>> sums_text({"b/c.json": "0" * 64}) == "0" * 64 + "  b/c.json\\n"
    True
    """
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(digests.items()))


def check_sums(folder: Path) -> dict[str, str]:
    """Compare a folder with its list, and return the SHA-256 of each file.

    Raises:
        CheckpointError: there is no list; a file was changed, is missing, or is not in the list.
    """
    listed = _read_sums(folder / SUMS_FILE)
    present = set(_listed_paths(folder))
    faults = [f"{path} is missing" for path in sorted(listed.keys() - present)]
    faults += [f"{path} is not in the list" for path in sorted(present - listed.keys())]
    common = sorted(listed.keys() & present)
    faults += [f"{path} was changed" for path in common if sha256_of_file(folder / path) != listed[path]]
    if faults:
        raise CheckpointError(f"{folder / SUMS_FILE}: {len(faults)} files differ from the list: {'; '.join(faults)}")
    return listed


def renew_sums(folder: Path, editable: Collection[str]) -> dict[str, str]:
    """Write the list again after a person has added files or edited those that are `editable`; return its digests.

    Raises:
        CheckpointError: there is no list, or another file was changed or is missing.
    """
    listed, found = _read_sums(folder / SUMS_FILE), sha256_of_folder(folder)
    if changed := sorted(name for name in listed.keys() - editable if found.get(name) != listed[name]):
        raise CheckpointError(
            f"{folder}: {', '.join(changed)} changed or missing; expected the files as they were saved"
        )
    if found != listed:
        atomic_write_text(folder / SUMS_FILE, sums_text(found))
    return found


def _listed_paths(folder: Path) -> list[str]:
    files = (file.relative_to(folder) for file in files_below(folder) if file.is_file())
    shown = (file for file in files if not any(part.startswith(".") for part in file.parts))
    return sorted(file.as_posix() for file in shown if file.as_posix() != SUMS_FILE)


def _read_sums(path: Path) -> dict[str, str]:
    try:
        size = path.stat().st_size
        if size > _MAX_SUMS_BYTES:
            raise CheckpointError(f"{path}: {size} bytes, expected at most {_MAX_SUMS_BYTES}")
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read ({e.strerror}); expected a policy that zk0 saved") from e
    except UnicodeDecodeError as e:
        raise CheckpointError(f"{path}: not UTF-8; expected the output of sha256sum") from e
    found = dict[str, str]()
    for number, line in enumerate(lines, start=1):
        digest, space, name = line.partition("  ")
        if not space or len(digest) != _HEX_DIGITS or set(digest) - set("0123456789abcdef"):
            raise CheckpointError(f"{path} line {number}: expected 64 hex digits, two blanks and a file name")
        found[name] = digest
    return found
