"""A file with one JSON record per line that a killed process may have left with half a line."""

import os
from pathlib import Path

from zk0.records import Record
from zk0.storage.disk_space import translate_disk_full


class RecordLines[R: Record]:
    """Records in the order in which they were appended.

    Args:
        file: made with the first record.
        kind: the records' class.
    """

    def __init__(self, file: Path, kind: type[R]) -> None:
        self._file, self._kind = file, kind

    def append(self, record: R) -> None:
        """Append a record; half a line before it is removed.

        Raises:
            DiskFull: the disk has no room for it.
        """
        with translate_disk_full(self._file), self._file.open("a+b") as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(record.model_dump_json().encode() + b"\n")

    def read(self) -> tuple[R, ...]:
        """Return all records; half a line is no record."""
        if not self._file.is_file():
            return ()
        lines = self._file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        return tuple(self._kind.model_validate_json(line) for line in lines)
