"""Nightly benchmarks: what a night measured, and the record of all nights, each chained to the one before.

A line of the file is `{"previous":"<64 hex digits>","night":{...}}` (`zk0.chain`).
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, PositiveFloat

from zk0.chain import ChainedLine, alone, append_line, checked_lines, last_digest, line_of, whole_lines
from zk0.records import Evaluation, Record


class Machine(Record):
    """Where was measured: times of two machines are not compared."""

    cpu: str
    cores: int
    gpu: str | None


class Sample(Record):
    """How long ours took against what it is compared to, side by side: lower is better."""

    name: str
    ratios: tuple[PositiveFloat, ...] = Field(min_length=1)
    """One a repeat."""


class PinnedSession(Record):
    """What a session that never changes ended with."""

    name: str
    digest: str
    """Of the trained weights."""
    seconds: tuple[PositiveFloat, ...] = Field(min_length=1)
    """Of rounds 1, 2, ..."""
    evaluation: Evaluation
    """Of the last round, on unseen data."""


class Night(Record):
    """All that was measured in one night, and what is worse than before."""

    began_at: str
    """ISO 8601 with time zone."""
    commit: str | None
    machine: Machine
    versions: dict[str, str]
    """Of Python and libraries: with others, the weights may be others too."""
    samples: tuple[Sample, ...] = ()
    sessions: tuple[PinnedSession, ...] = ()
    regressions: tuple[str, ...] = ()
    """One sentence each."""
    accepted: str | None = None
    """Why the next nights are compared with this one although something is worse."""

    @property
    def good(self) -> bool:
        """Whether later nights are compared with this one."""
        return not self.regressions or self.accepted is not None


class _Line(ChainedLine):
    night: Night


@dataclass(frozen=True)
class NightLedger:
    """All nights in one file; it need not exist yet."""

    path: Path

    def read(self) -> tuple[Night, ...]:
        """The nights in order; a last line that a crash cut short is not one of them.

        Raises:
            LedgerError: a line was changed, removed, added or does not parse; its number is named.
        """
        return self._checked(whole_lines(self.path))

    def append(self, night: Night) -> None:
        """Put a night on the disk.

        Raises:
            LedgerError: the file is broken.
        """
        with alone(self.path) as handle:
            lines = whole_lines(self.path)
            self._checked(lines)
            append_line(handle, lines, line_of("night", night, last_digest(lines)))

    def _checked(self, lines: list[bytes]) -> tuple[Night, ...]:
        return tuple(line.night for line in checked_lines(self.path, lines, _Line, "night"))
