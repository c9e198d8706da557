"""The record of a session: one line a finished round, each chained to the one before.

A line of `ledger.jsonl` is `{"previous":"<64 hex digits>","record":{...}}`. `previous` is the SHA-256 of the bytes of
the line before without its line feed; 64 zeros in the first line. A line counts once its line feed is on the disk.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from zk0.errors import LedgerError
from zk0.records import Record, RoundRecord
from zk0.weights import sync_folder

START = "0" * 64
"""What the first line of a ledger is chained to."""


class _Line(Record):
    previous: str = Field(pattern=r"^[0-9a-f]{64}$")
    record: RoundRecord


@dataclass(frozen=True)
class Ledger:
    """The finished rounds of a session in one file; it need not exist yet. Nothing is kept in memory."""

    path: Path

    def read(self) -> tuple[RoundRecord, ...]:
        """The finished rounds from round 0 on; a last line that a crash cut short is not one of them.

        Raises:
            LedgerError: a line was changed, removed, added or does not parse; its number is named.
        """
        return self._checked(self._whole_lines())

    def root(self) -> str:
        """SHA-256 of the last line: it stands for the whole history. 64 zeros when no round is finished."""
        lines = self._whole_lines()
        self._checked(lines)
        return _sha256(lines[-1]) if lines else START

    def append(self, record: RoundRecord) -> None:
        """Put a finished round on the disk, exactly once: the same record again changes nothing.

        Raises:
            LedgerError: the ledger is broken, the round was finished with another record, or it is not the next.
        """
        with self._alone() as handle:
            lines = self._whole_lines()
            finished = self._checked(lines)
            if record.round < len(finished):
                if record != finished[record.round]:
                    raise LedgerError(
                        f"{self.path}: round {record.round} is finished with another record; "
                        "take the recorded one, a finished round is not run again"
                    )
                return
            if record.round > len(finished):
                raise LedgerError(f"{self.path}: round {record.round} comes next, expected round {len(finished)}")
            line = {"previous": _sha256(lines[-1]) if lines else START, "record": record.model_dump(mode="json")}
            text = json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            os.ftruncate(handle, sum(len(whole) + 1 for whole in lines))  # drops what a crash left
            _write_all(handle, text.encode() + b"\n")
            os.fsync(handle)

    def _whole_lines(self) -> list[bytes]:
        try:
            return self.path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        except OSError as e:
            raise LedgerError(f"{self.path}: cannot be read ({e.strerror})") from e

    def _checked(self, lines: list[bytes]) -> tuple[RoundRecord, ...]:
        records: list[RoundRecord] = []
        previous = START
        for number, text in enumerate(lines, start=1):
            try:
                line = _Line.model_validate_json(text)
            except ValidationError as e:
                fault = e.errors(include_url=False)[0]
                where = ".".join(map(str, fault["loc"])) or "it"
                raise LedgerError(
                    f"{self.path} line {number}: not a finished round: {where}: {fault['msg']}; "
                    "put the file back as it was"
                ) from e
            if line.previous != previous:
                raise LedgerError(
                    f"{self.path} line {number}: chained to {line.previous[:12]}, expected {previous[:12]}: "
                    "a line before it was changed, added or removed"
                )
            if line.record.round != len(records):
                raise LedgerError(
                    f"{self.path} line {number}: round {line.record.round}, expected round {len(records)}"
                )
            records.append(line.record)
            previous = _sha256(text)
        return tuple(records)

    @contextmanager
    def _alone(self) -> Iterator[int]:
        # the lock goes with the process, so a killed writer never leaves it behind
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if new:
                sync_folder(self.path.parent)
            yield handle
        finally:
            os.close(handle)


def _sha256(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]
