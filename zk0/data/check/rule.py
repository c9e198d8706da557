"""What a rule of the data check is, and the groups in which rules are declared.

A rule is a generator function that yields a `Violation` for each place where a dataset breaks it. A decorator declares
its id, severity and repair; the first paragraph of its docstring says what must hold. Nothing else is registered, and
the page docs/data-checks.md is generated from these declarations (`python docs/data_checks.py`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import getdoc
from typing import Literal

from zk0.records import MAX_INDEX, MAX_LISTED_EPISODES, Finding

Severity = Literal["error", "warning"]

REPAIRS = {
    "add-columns": "Compute the missing default columns from the order of the rows.",
    "cast-columns": "Cast the columns to the declared types.",
    "convert-to-v3": "Write the dataset in the layout of LeRobot v3.0.",
    "convert-units": "Convert states and actions to degrees; grippers from 0 to 100 stay.",
    "correct-fps": "Write the rate of the timestamps and the videos as fps in meta/info.json.",
    "declare-features": "Declare the default features and the true image sizes in meta/info.json.",
    "drop-camera": "Leave out the cameras of which no video exists.",
    "drop-columns": "Leave out the columns that meta/info.json does not declare.",
    "drop-duplicates": "Keep the first copy of every frame and of every episode.",
    "drop-episodes": "Leave out the episodes that are incomplete or unreadable.",
    "drop-rows": "Leave out the rows that belong to no episode.",
    "index-tasks": "Write the task texts as the index of meta/tasks.parquet.",
    "rebuild-episodes": "Build the episode table again from the rows and the videos.",
    "rebuild-tasks": "Build the task table again from the texts in the episode table and the numbers in the rows.",
    "recompute-statistics": "Compute meta/stats.json anew from the frames of the copy.",
    "recount": "Write counts, lengths, boundaries, files and offsets as they are in the data and the videos.",
    "regularize-timestamps": "Write timestamp = frame_index / fps in every episode whose timestamps are off.",
    "remove-byte-order-mark": "Write JSON files without a byte order mark.",
    "remove-orphans": "Leave out the files that no episode refers to.",
    "rename-keys": "Write features, cameras and joints under their canonical names.",
    "renumber": "Number episodes, frames, rows and tasks from 0 in order.",
    "retime-videos": "Give the frames of a video regular times, without encoding them again.",
}
"""Repair -> what the repaired copy (`zk0.data.repair`) does differently."""


@dataclass(frozen=True)
class Violation:
    """One place where a dataset breaks a rule."""

    where: str
    found: str
    expected: str
    severity: Severity | None = None
    """None: the rule's own."""
    repair: str | None = None
    """None: the rule's first one."""
    repairable: bool = True
    """False: this violation cannot be repaired, although the rule has a repair."""
    episodes: tuple[int, ...] = ()
    """The episodes that it concerns; empty: the whole dataset, or they are not known."""


@dataclass(frozen=True)
class Rule:
    """A rule as it is declared."""

    id: str
    meaning: str
    """What must hold."""
    severity: Severity = "error"
    """An error keeps the dataset out of a federation, a warning does not."""
    error_if: str = ""
    """When a violation of a warning is an error nevertheless."""
    repairs: tuple[str, ...] = ()
    """Names of the repairs; empty: a violation cannot be repaired."""
    repair_if: str = ""
    """When it can be repaired; empty: always."""

    def finding(self, violation: Violation) -> Finding:
        """Return the finding that reports a violation."""
        repair = violation.repair or next(iter(self.repairs), None)
        return Finding(
            rule=self.id,
            severity=violation.severity or self.severity,
            where=violation.where,
            found=violation.found,
            expected=violation.expected,
            repair=repair if violation.repairable else None,
            episodes=tuple(e for e in violation.episodes if 0 <= e <= MAX_INDEX)[:MAX_LISTED_EPISODES],
        )


class RuleGroup[**P, V: Violation]:
    """The rules that one file declares, in the order in which they run.

    `P` is what its rule functions take (most take `Contents`), `V` what they yield.

    Args:
        title: heading of the group in docs/data-checks.md.
        module: `__name__` of the file.
    """

    def __init__(self, title: str, module: str) -> None:
        self.title, self.module = title, module
        self.rules: list[Rule] = []
        self._functions: list[tuple[Rule, Callable[P, Iterator[V]]]] = []

    def declare(
        self,
        rule_id: str,
        meaning: str,
        *,
        severity: Severity = "error",
        error_if: str = "",
        repairs: tuple[str, ...] = (),
        repair_if: str = "",
    ) -> Rule:
        """Declare a rule that has no function of its own, because another step finds its violations.

        Raises:
            ValueError: the id is taken in this group, there is no meaning, or a repair is not one of `REPAIRS`.
        """
        rule = Rule(rule_id, meaning, severity, error_if, repairs, repair_if)
        if not meaning or rule_id in {r.id for r in self.rules} or not REPAIRS.keys() >= set(repairs):
            raise ValueError(f"{rule}: expected a new id, a meaning, and repairs of {', '.join(REPAIRS)}")
        self.rules.append(rule)
        return rule

    def rule(
        self,
        rule_id: str,
        *,
        severity: Severity = "error",
        error_if: str = "",
        repairs: tuple[str, ...] = (),
        repair_if: str = "",
    ) -> Callable[[Callable[P, Iterator[V]]], Callable[P, Iterator[V]]]:
        """Declare the decorated function as a rule; the first paragraph of its docstring is the meaning."""

        def register(function: Callable[P, Iterator[V]]) -> Callable[P, Iterator[V]]:
            meaning = " ".join((getdoc(function) or "").partition("\n\n")[0].split())
            rule = self.declare(
                rule_id, meaning, severity=severity, error_if=error_if, repairs=repairs, repair_if=repair_if
            )
            return self.also_finds(rule)(function)

        return register

    def also_finds(self, rule: Rule) -> Callable[[Callable[P, Iterator[V]]], Callable[P, Iterator[V]]]:
        """Let the decorated function report violations of a rule that another group declares."""

        def register(function: Callable[P, Iterator[V]]) -> Callable[P, Iterator[V]]:
            self._functions.append((rule, function))
            return function

        return register

    def violations(self, *args: P.args, **kwargs: P.kwargs) -> Iterator[tuple[Rule, V]]:
        """Yield every violation with its rule, in the order of the rules."""
        for rule, function in self._functions:
            for violation in function(*args, **kwargs):
                yield rule, violation

    def findings(self, *args: P.args, **kwargs: P.kwargs) -> Iterator[Finding]:
        """Yield a finding for every violation, in the order of the rules."""
        for rule, violation in self.violations(*args, **kwargs):
            yield rule.finding(violation)
