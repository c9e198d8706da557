"""What lies in a data set's folder, without ever leaving it.

Every read of a data set goes through a Folder: links that lead out, names with `..`, pipes and devices are
listed as refused and never opened.
"""

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from zk0.errors import DatasetError

MAX_TEXT_BYTES = 256 * 1024**2


class BrokenFile(DatasetError):
    """A file is missing or is not what it says; carries what was found, what was expected, and where."""

    def __init__(self, where: str, found: str, expected: str) -> None:
        super().__init__(f"{where}: found {found}, expected {expected}")
        self.where, self.found, self.expected = where, found, expected


@dataclass(frozen=True)
class Folder:
    """The plain files of one data set, by their path relative to its root (with `/`)."""

    root: Path
    sizes: dict[str, int]
    """Bytes of every file that may be read."""
    refused: tuple[tuple[str, str], ...] = ()
    """Paths that are not opened, and why."""

    def __contains__(self, relative: str) -> bool:
        return relative in self.sizes

    def under(self, prefix: str, suffix: str = "") -> tuple[str, ...]:
        """The files below a folder, sorted."""
        return tuple(sorted(f for f in self.sizes if f.startswith(f"{prefix}/") and f.endswith(suffix)))

    def path(self, relative: str) -> Path:
        """Where a listed file lies.

        Raises:
            BrokenFile: it is not there, leads out of the folder, or is empty.
        """
        if relative not in self.sizes:
            why = dict(self.refused).get(relative, "no file")
            raise BrokenFile(relative, why, "a file inside the data set's folder")
        if self.sizes[relative] == 0:
            raise BrokenFile(relative, "an empty file (0 bytes)", "a file with content")
        return self.root / relative

    def text(self, relative: str) -> str:
        """A text file.

        Raises:
            BrokenFile: it is missing, too large, or not UTF-8.
        """
        path = self.path(relative)
        if self.sizes[relative] > MAX_TEXT_BYTES:
            raise BrokenFile(relative, f"{self.sizes[relative]} bytes", f"at most {MAX_TEXT_BYTES} bytes of text")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as e:
            raise BrokenFile(relative, f"bytes that are no text ({e.reason} at byte {e.start})", "UTF-8") from e
        except OSError as e:
            raise BrokenFile(relative, f"an unreadable file ({e.strerror})", "a readable file") from e

    def json(self, relative: str) -> Any:
        """A JSON file.

        Raises:
            BrokenFile: it is missing or not JSON.
        """
        return _parse(self.text(relative), relative)

    def json_lines(self, relative: str) -> list[Any]:
        """A JSON-lines file, empty lines left out.

        Raises:
            BrokenFile: it is missing, or a line is not JSON.
        """
        lines = self.text(relative).splitlines()
        return [_parse(line, f"{relative} line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def list_folder(root: Path) -> Folder:
    """All plain files below `root`; hidden folders are left out.

    A link inside the root is followed to a file, never to a folder. A link that leads out is refused, except
    into the `blobs` of the same repository, which is how the Hub's cache stores a snapshot.

    Raises:
        DatasetError: there is no such folder.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; expected a LeRobot data set with meta, data and videos")
    inside = root.resolve()
    allowed = [inside]
    if inside.parent.name == "snapshots":
        allowed.append(inside.parent.parent / "blobs")
    sizes: dict[str, int] = {}
    refused: list[tuple[str, str]] = []
    for folder, folders, names in os.walk(inside, followlinks=False):
        here = Path(folder)
        linked = [d for d in folders if (here / d).is_symlink()]
        refused += [((here / d).relative_to(inside).as_posix(), "a link to a folder") for d in linked]
        folders[:] = sorted(d for d in folders if not d.startswith(".") and d not in linked)
        for name in sorted(names):
            path = here / name
            relative = path.relative_to(inside).as_posix()
            if not relative.isprintable():
                refused.append((ascii(relative), "a name with bytes that are no text"))
            elif why := _refusal(path, allowed):
                refused.append((relative, why))
            else:
                sizes[relative] = path.stat().st_size
    return Folder(inside, sizes, tuple(refused))


def folder_of(uri: str, cache: Path) -> Path:
    """The folder of a data set that may be broken: a `local:` one as it is, any other from the Hub.

    Raises:
        DatasetError: there is no such folder, or the Hub does not have it or cannot be reached.
    """
    from zk0.robot.locate import locate

    if not uri.startswith("local:"):
        return locate(uri, cache)
    root = Path(uri.removeprefix("local:")).expanduser()
    if not root.is_dir():
        raise DatasetError(f"{uri}: no such folder; expected a LeRobot data set with meta, data and videos")
    return root


def leaves_folder(name: str) -> bool:
    """Whether a name taken from a data set could point outside its folder.

    >>> leaves_folder("data/../../secret"), leaves_folder("/etc/passwd"), leaves_folder("observation.images.top")
    (True, True, False)
    """
    return name.startswith("/") or "\\" in name or "\0" in name or ".." in PurePosixPath(name).parts


def first_line(error: BaseException) -> str:
    """What a library said, short enough for one line."""
    return str(error).splitlines()[0][:120] if str(error).strip() else type(error).__name__


def _refusal(path: Path, allowed: list[Path]) -> str | None:
    try:
        target = path.resolve(strict=True)
        mode = path.stat().st_mode
    except (OSError, RuntimeError):
        return "a link that leads nowhere"
    if not any(target.is_relative_to(a) for a in allowed):
        return "a link that leaves the folder"
    return None if stat.S_ISREG(mode) else "no plain file (a pipe, a socket or a device)"


def _parse(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text anywhere else
    except (ValueError, RecursionError) as e:
        raise BrokenFile(where, f"text that is not JSON ({str(e)[:120]})", "JSON") from e
    return value
