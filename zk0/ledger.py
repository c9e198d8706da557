"""The record of a session: one line a finished round, each chained to the one before (`zk0.chain`).

A line of `ledger.jsonl` is `{"previous":"<64 hex digits>","record":{...}}`.
"""

from dataclasses import dataclass
from pathlib import Path

from zk0.chain import ChainedLine, alone, append_line, checked_lines, last_digest, line_digest, line_of, whole_lines
from zk0.errors import LedgerError
from zk0.records import RoundRecord


class _Line(ChainedLine):
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
        return line_digest(line_of("record", record, last_digest(lines[: record.round])))

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
            append_line(handle, lines, line_of("record", record, last_digest(lines)))

    def _checked(self, lines: list[bytes]) -> tuple[RoundRecord, ...]:
        records: list[RoundRecord] = []
        for line in checked_lines(self.path, lines, _Line, "finished round"):
            if line.record.round != len(records):
                raise LedgerError(
                    f"{self.path} line {len(records) + 1}: round {line.record.round}, expected round {len(records)}"
                )
            records.append(line.record)
        return tuple(records)
