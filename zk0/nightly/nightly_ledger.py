"""Ledger of the nightly benchmarks: one line per nightly run, chained to the line before.

A line of the file is `{"previous":"<64 hex digits>","night":{...}}` (`zk0.audit.hash_chain`).
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, PositiveFloat

from zk0.audit.hash_chain import (
    ChainedLine,
    append_line,
    chained_line,
    complete_lines,
    last_line_digest,
    locked_file,
    parse_lines,
    size_of_lines,
)
from zk0.records import Evaluation, Record


class Machine(Record):
    """The machine of a nightly run; times of different machines are not compared."""

    cpu: str
    cores: int
    gpu: str | None


class BenchmarkSample(Record):
    """Ratios of our time to that of a reference that was measured beside it; lower is better."""

    name: str
    ratios: tuple[PositiveFloat, ...] = Field(min_length=1)
    """One per repeat."""


class PinnedSessionResult(Record):
    """Result of a pinned session, whose settings never change."""

    name: str
    digest: str
    """Of the final weights."""
    seconds: tuple[PositiveFloat, ...] = Field(min_length=1)
    """Of rounds 1, 2, ..."""
    evaluation: Evaluation
    """Of the last round, on unseen data."""


class NightlyRun(Record):
    """All results of one nightly run, and its regressions."""

    started_at: str
    """ISO 8601 with time zone."""
    commit: str | None
    machine: Machine
    versions: dict[str, str]
    """Of Python and libraries; weights may differ between versions."""
    samples: tuple[BenchmarkSample, ...] = ()
    sessions: tuple[PinnedSessionResult, ...] = ()
    regressions: tuple[str, ...] = ()
    """One sentence each."""
    accepted_reason: str | None = None
    """Why later runs are compared with this one despite its regressions."""

    @property
    def is_reference(self) -> bool:
        """Whether later runs are compared with this one."""
        return not self.regressions or self.accepted_reason is not None


class _Line(ChainedLine):
    night: NightlyRun


@dataclass(frozen=True)
class NightlyLedger:
    """All nightly runs in one file, which may not exist yet."""

    path: Path

    def read(self) -> tuple[NightlyRun, ...]:
        """All runs in order; a last line that a crash cut short is ignored.

        Raises:
            LedgerError: a line was changed, removed or added, or does not parse; the message has its number.
        """
        return self._checked(complete_lines(self.path))

    def append(self, run: NightlyRun) -> None:
        """Append a run and flush it to the disk.

        Raises:
            LedgerError: a line of the file is not valid.
        """
        with locked_file(self.path) as handle:
            lines = complete_lines(self.path)
            self._checked(lines)
            append_line(handle, size_of_lines(lines), chained_line("night", run, last_line_digest(lines)))

    def _checked(self, lines: list[bytes]) -> tuple[NightlyRun, ...]:
        return tuple(line.night for line in parse_lines(self.path, lines, _Line, "night"))
