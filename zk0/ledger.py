"""The record of a session: one line a finished round, each chained to the one before (`zk0.chain`).

A line of `ledger.jsonl` is `{"previous":"<64 hex digits>","record":{...}}`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from zk0.chain import START, alone, append_line, check_chained, last_digest, line_digest, whole_lines
from zk0.errors import LedgerError
from zk0.records import Record, RoundRecord


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
        return self._checked(whole_lines(self.path))

    def root(self) -> str:
        """SHA-256 of the last line: it stands for the whole history. 64 zeros when no round is finished."""
        lines = whole_lines(self.path)
        self._checked(lines)
        return last_digest(lines)

    def root_with(self, record: RoundRecord) -> str:
        """What the root is once this record, which comes next or is there, is the last one."""
        lines = whole_lines(self.path)
        self._checked(lines)
        return line_digest(_line(record, last_digest(lines[: record.round])))

    def append(self, record: RoundRecord) -> None:
        """Put a finished round on the disk, exactly once: the same record again changes nothing.

        Raises:
            LedgerError: the ledger is broken, the round was finished with another record, or it is not the next.
        """
        with alone(self.path) as handle:
            lines = whole_lines(self.path)
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
            append_line(handle, lines, _line(record, last_digest(lines)))

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
            check_chained(self.path, number, line.previous, previous)
            if line.record.round != len(records):
                raise LedgerError(
                    f"{self.path} line {number}: round {line.record.round}, expected round {len(records)}"
                )
            records.append(line.record)
            previous = line_digest(text)
        return tuple(records)


def _line(record: RoundRecord, previous: str) -> bytes:
    line = {"previous": previous, "record": record.model_dump(mode="json")}
    return json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
