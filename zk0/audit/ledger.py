"""The ledger of a session: one line for each finished round, chained to the line before (`zk0.audit.hash_chain`).

A line of `ledger.jsonl` is `{"previous":"<64 hex digits>","record":{...}}`. The ledger is the only memory of a session:
the next round is decided from it, and a killed session resumes from it.
"""

from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from zk0.audit.hash_chain import (
    FIRST_PREVIOUS,
    ChainedLine,
    append_line,
    chained_line,
    complete_lines,
    last_line_digest,
    line_digest,
    locked_file,
    parse_lines,
    size_of_lines,
)
from zk0.errors import LedgerError
from zk0.records import RoundRecord


class _Line(ChainedLine):
    record: RoundRecord


_parsed: WeakValueDictionary[tuple[str, str], RoundRecord] = WeakValueDictionary()
"""Records that are in use, by the digests of the line before theirs and of their own line. A session reads its ledger
several times a round; of a line that was read before, only the digest is computed."""


@dataclass(frozen=True)
class Ledger:
    """The finished rounds of a session, in a file that need not exist yet. Every call reads the file."""

    path: Path

    def read(self) -> tuple[RoundRecord, ...]:
        """Records of the finished rounds, from round 0 on; an incomplete last line is ignored.

        Raises:
            LedgerError: a line was changed, removed or added, or does not parse; names its number.
        """
        return self._parse(complete_lines(self.path))

    def root(self) -> str:
        """SHA-256 of the last line, which depends on the whole history; 64 zeros if no round is finished."""
        lines = complete_lines(self.path)
        self._parse(lines)
        return last_line_digest(lines)

    def root_with(self, record: RoundRecord) -> str:
        """The root when this record is the last one; the record is the next one, or in the ledger already."""
        lines = complete_lines(self.path)
        self._parse(lines)
        return line_digest(chained_line("record", record, last_line_digest(lines[: record.round])))

    def append(self, record: RoundRecord) -> None:
        """Append the record of a finished round; appending the same record again changes nothing.

        Raises:
            LedgerError: the ledger is broken, holds another record of this round, or lacks the round before.
        """
        with locked_file(self.path) as handle:
            lines = complete_lines(self.path)
            finished = self._parse(lines)
            if record.round < len(finished):
                if record != finished[record.round]:
                    raise LedgerError(
                        f"{self.path}: round {record.round} is finished with another record; "
                        "use the recorded one, a finished round is not run again"
                    )
                return
            if record.round > len(finished):
                raise LedgerError(f"{self.path}: record of round {record.round}, expected round {len(finished)}")
            append_line(handle, size_of_lines(lines), chained_line("record", record, last_line_digest(lines)))

    def _parse(self, lines: list[bytes]) -> tuple[RoundRecord, ...]:
        records: list[RoundRecord] = []
        previous = FIRST_PREVIOUS
        for text in lines:
            key = (previous, line_digest(text))
            record = _parsed.get(key)
            if record is None:
                _parsed[key] = record = self._parse_record(text, previous, len(records))
            records.append(record)
            previous = key[1]
        return tuple(records)

    def _parse_record(self, text: bytes, previous: str, number: int) -> RoundRecord:
        (line,) = parse_lines(self.path, [text], _Line, "finished round", previous, number + 1)
        if line.record.round != number:
            raise LedgerError(f"{self.path} line {number + 1}: round {line.record.round}, expected round {number}")
        return line.record
