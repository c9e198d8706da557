"""Digests of saved policies: those in their round's record, and those of policies that were saved after it.

A policy that is saved when all rounds are recorded (the best round, or the last one of a session that ended early)
has a line in `late_policies.jsonl`: `{"previous":"<64 hex digits>","policy":{...}}`. Its first line is chained to the
last line of the ledger, each further one to the line before, so that the file continues the ledger.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from zk0.audit.hash_chain import (
    ChainedLine,
    append_line,
    chained_line,
    complete_lines,
    line_digest,
    locked_file,
    parse_lines,
    size_of_lines,
)
from zk0.audit.ledger import Ledger
from zk0.errors import LedgerError
from zk0.records import Record, RoundRecord
from zk0.storage.session_folder import SessionFolder


class LatePolicy(Record):
    """The files of a policy that was saved after its round was recorded."""

    round: int = Field(ge=0)
    files: dict[str, str]
    """SHA-256 of each file, as `RoundRecord.policy_files`."""


class _Line(ChainedLine):
    policy: LatePolicy


def late_policies_file(here: SessionFolder) -> Path:
    """Return the file with the digests of policies that were saved after their rounds were recorded."""
    return here.path / "late_policies.jsonl"


def recorded_policy_files(here: SessionFolder, record: RoundRecord) -> Mapping[str, str]:
    """Return the recorded SHA-256 of each file of a round's policy; none if the session has recorded no such policy.

    Raises:
        LedgerError: the ledger, or the file that continues it, was changed.
    """
    return record.policy_files or read_late_policies(here).get(record.round, {})


def read_late_policies(here: SessionFolder) -> dict[int, dict[str, str]]:
    """Return the SHA-256 of each file, by round, of the policies that were saved after their rounds were recorded.

    Raises:
        LedgerError: a line was changed, removed or added, or the ledger is not the one that the file continues.
    """
    return _parse(here, complete_lines(late_policies_file(here)))


def record_late_policy(here: SessionFolder, number: int, files: Mapping[str, str]) -> None:
    """Append the digests of a policy; appending the same again changes nothing.

    Args:
        here: the session's folder, whose rounds are all recorded.
        number: the round of the policy.
        files: SHA-256 of each file.

    Raises:
        LedgerError: the file is broken, or has other digests of this round.
    """
    path = late_policies_file(here)
    with locked_file(path) as handle:
        lines = complete_lines(path)
        known = _parse(here, lines).get(number)
        if known is not None and known != files:
            raise LedgerError(
                f"{path}: policy of round {number} with other files; expected those that were saved first: restore "
                f"{here.checkpoint(number)} from a copy"
            )
        if known is None:
            previous = line_digest(lines[-1]) if lines else Ledger(here.ledger).root()
            policy = LatePolicy(round=number, files=dict(files))
            append_line(handle, size_of_lines(lines), chained_line("policy", policy, previous))


def _parse(here: SessionFolder, lines: list[bytes]) -> dict[int, dict[str, str]]:
    if not lines:
        return {}
    root = Ledger(here.ledger).root()
    parsed = parse_lines(late_policies_file(here), lines, _Line, "saved policy", root)
    return {line.policy.round: line.policy.files for line in parsed}
