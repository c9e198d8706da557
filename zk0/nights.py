"""Nightly benchmarks: what a night measured, and the record of all nights, each chained to the one before.

A line of the file is `{"previous":"<64 hex digits>","night":{...}}` (`zk0.chain`).
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, PositiveFloat, ValidationError

from zk0.chain import START, alone, append_line, check_chained, last_digest, line_digest, whole_lines
from zk0.errors import LedgerError
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
    """SHA-256 of the trained weights."""
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


class _Line(Record):
    previous: str = Field(pattern=r"^[0-9a-f]{64}$")
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
            line = {"previous": last_digest(lines), "night": night.model_dump(mode="json")}
            text = json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            append_line(handle, lines, text.encode())

    def _checked(self, lines: list[bytes]) -> tuple[Night, ...]:
        nights, previous = [], START
        for number, text in enumerate(lines, start=1):
            try:
                line = _Line.model_validate_json(text)
            except ValidationError as e:
                fault = e.errors(include_url=False)[0]
                where = ".".join(map(str, fault["loc"])) or "it"
                raise LedgerError(f"{self.path} line {number}: not a night: {where}: {fault['msg']}") from e
            check_chained(self.path, number, line.previous, previous)
            nights.append(line.night)
            previous = line_digest(text)
        return tuple(nights)
