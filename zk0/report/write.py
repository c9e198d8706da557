"""Files that are there whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zk0.errors import ReportError


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` when the block ends well, else it is removed.

    Raises:
        ReportError: the folder or the file cannot be written.
    """
    half = path.with_name(f".{path.stem}.half{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield half
        half.replace(path)
    except OSError as e:
        raise ReportError(f"{path}: cannot be written ({e.strerror or e}); free space or choose another folder") from e
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            half.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        ReportError: the folder or the file cannot be written.
    """
    with aside(path) as half:
        half.write_bytes(content)
