"""The files of a dataset's folder, and safe reads of them.

The check, the repair and the readers open the files of a dataset through `DatasetFolder`. Links that point out of the
folder, pipes and devices are listed as refused and never opened, because a dataset may come from anybody.
"""

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from zk0.errors import DatasetError, first_line, may_pass

MAX_TEXT_BYTES = 256 * 1024**2


class BrokenFile(DatasetError):
    """A file is missing, unreadable or malformed; carries where, what was found and what was expected."""

    def __init__(self, where: str, found: str, expected: str) -> None:
        super().__init__(f"{where}: found {found}, expected {expected}")
        self.where, self.found, self.expected = where, found, expected


def raise_if_passing(error: BaseException, where: str | Path) -> None:
    """Raise where the disk failed for a reason that may pass, which says nothing about the dataset.

    Raises:
        DatasetError: caused by the disk's error, so that tasks and joining clients try again.
    """
    if may_pass(error):
        raise DatasetError(f"{where}: cannot be read now ({first_line(error, 120)})") from error


@dataclass(frozen=True)
class DatasetFolder:
    """The regular files of one dataset, by path relative to its root (separated by `/`)."""

    root: Path
    sizes: dict[str, int]
    """Size in bytes of every file that may be read."""
    refused: tuple[tuple[str, str], ...] = ()
    """(path, reason) of everything that is not opened."""

    def __contains__(self, relative: str) -> bool:
        return relative in self.sizes

    def files_under(self, prefix: str, suffix: str = "") -> tuple[str, ...]:
        """Return the sorted paths of the files below a folder."""
        return tuple(sorted(f for f in self.sizes if f.startswith(f"{prefix}/") and f.endswith(suffix)))

    def file_path(self, relative: str) -> Path:
        """Return the absolute path of a listed file.

        Raises:
            BrokenFile: the file is missing, refused or empty.
        """
        if relative not in self.sizes:
            why = dict(self.refused).get(relative, "no file")
            raise BrokenFile(relative, why, "a file inside the dataset's folder")
        if self.sizes[relative] == 0:
            raise BrokenFile(relative, "an empty file (0 bytes)", "a file with content")
        return self.root / relative

    def read_text(self, relative: str) -> str:
        """Return the content of a UTF-8 text file.

        Raises:
            BrokenFile: the file is missing, larger than `MAX_TEXT_BYTES`, or not UTF-8.
        """
        path = self.file_path(relative)
        if self.sizes[relative] > MAX_TEXT_BYTES:
            raise BrokenFile(relative, f"{self.sizes[relative]} bytes", f"at most {MAX_TEXT_BYTES} bytes of text")
        try:
            return path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as e:
            raise BrokenFile(relative, f"bytes that are not text ({e.reason} at byte {e.start})", "UTF-8") from e
        except OSError as e:
            raise_if_passing(e, relative)
            raise BrokenFile(relative, f"an unreadable file ({e.strerror})", "a readable file") from e

    def starts_with(self, relative: str, prefix: bytes) -> bool:
        """Return whether a listed file begins with these bytes."""
        try:
            with (self.root / relative).open("rb") as stream:
                return stream.read(len(prefix)) == prefix
        except OSError as e:
            raise_if_passing(e, relative)
            return False

    def ends_with(self, relative: str, suffix: bytes) -> bool:
        """Return whether a listed file ends with these bytes."""
        try:
            with (self.root / relative).open("rb") as stream:
                stream.seek(-min(len(suffix), self.sizes[relative]), os.SEEK_END)
                return stream.read() == suffix
        except OSError as e:
            raise_if_passing(e, relative)
            return False

    def read_json(self, relative: str) -> Any:
        """Return the parsed content of a JSON file.

        Raises:
            BrokenFile: the file is missing or not JSON.
        """
        return _parse(self.read_text(relative), relative)

    def read_json_lines(self, relative: str) -> list[Any]:
        """Return the parsed lines of a JSON Lines file; empty lines are skipped.

        Raises:
            BrokenFile: the file is missing, or a line is not JSON.
        """
        lines = self.read_text(relative).splitlines()
        return [_parse(line, f"{relative} line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def list_folder(root: Path) -> DatasetFolder:
    """List the regular files below `root`; hidden folders are skipped.

    A link to a file inside the root is followed, a link to a folder is refused. A link that points out of the root is
    refused too, unless it points into the `blobs` folder of the same repository: the Hub's cache stores a snapshot so.

    Raises:
        DatasetError: `root` is not a folder, or the disk fails for a reason that may pass.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; expected a LeRobot dataset with meta, data and videos")
    inside = root.resolve()
    allowed = [inside]
    if inside.parent.name == "snapshots":
        allowed.append(inside.parent.parent / "blobs")
    sizes: dict[str, int] = {}
    refused: list[tuple[str, str]] = []
    for folder, folders, names in os.walk(inside, onerror=_not_listed, followlinks=False):
        here = Path(folder)
        linked = [d for d in folders if (here / d).is_symlink()]
        refused += [((here / d).relative_to(inside).as_posix(), "a link to a folder") for d in linked]
        folders[:] = sorted(d for d in folders if not d.startswith(".") and d not in linked)
        for name in sorted(names):
            path = here / name
            relative = path.relative_to(inside).as_posix()
            if not relative.isprintable():
                refused.append((ascii(relative), "a name with bytes that are not text"))
            elif why := _refusal(path, allowed):
                refused.append((relative, why))
            else:
                sizes[relative] = path.stat().st_size
    return DatasetFolder(inside, sizes, tuple(refused))


def points_outside(name: str) -> bool:
    """Return whether a path taken from a dataset's metadata could point outside the dataset's folder.

    >>> points_outside("data/../../secret"), points_outside("/etc/passwd"), points_outside("observation.images.top")
    (True, True, False)
    """
    return name.startswith("/") or "\\" in name or "\0" in name or ".." in PurePosixPath(name).parts


def _not_listed(error: OSError) -> None:
    raise_if_passing(error, error.filename)


def _refusal(path: Path, allowed: list[Path]) -> str | None:
    try:
        target = path.resolve(strict=True)
        mode = path.stat().st_mode
    except (OSError, RuntimeError) as e:
        raise_if_passing(e, path)
        return "a dangling link"
    if not any(target.is_relative_to(a) for a in allowed):
        return "a link that points out of the folder"
    return None if stat.S_ISREG(mode) else "not a regular file (a pipe, a socket or a device)"


def _parse(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate cannot be encoded again
    except (ValueError, RecursionError) as e:
        raise BrokenFile(where, f"text that is not JSON ({str(e)[:120]})", "JSON") from e
    return value
