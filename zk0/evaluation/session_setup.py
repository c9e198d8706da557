"""What a session is built on, fixed before its first round: members, evaluation sets, statistics, recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from zk0.errors import DatasetError, PolicyError
from zk0.evaluation.statistics_groups import check_groups, find_group
from zk0.records import (
    DatasetReport,
    Member,
    NormalizationKind,
    PolicyRecipe,
    Record,
    Split,
    Statistics,
    StatisticsGroup,
    UnseenBy,
)
from zk0.storage.atomic import atomic_write_text


class EvaluationSet(Record):
    """One dataset that the server evaluates on, and which of its episodes."""

    dataset: str
    root: str
    rename_map: dict[str, str]
    report: DatasetReport
    split: Split
    """`held_out` are the evaluation episodes; `train` is empty."""
    digests: tuple[str, ...]
    """SHA-256 of states and actions of each evaluation episode."""
    path_sketches: tuple[str, ...] = ()
    """Sketch of each evaluation episode (`zk0.data.path_sketches`)."""


class SessionSetup(Record):
    """The setup of a session, written to `session_setup.json`: clients may join later, nothing else changes."""

    recipe: PolicyRecipe
    members: tuple[Member, ...]
    sets: tuple[EvaluationSet, ...]
    statistics: Statistics
    """The policy's, or pooled over the clients that were there before the first round; with `groups`, those of the
    default group."""
    groups: tuple[StatisticsGroup, ...] = ()
    """Statistics by joints and units, the default group first; empty: one group, whose are `statistics`."""
    normalization: NormalizationKind = "pooled"
    """Whose statistics these are; `client`: each client normalizes with its own, these are for the server."""
    normalization_reason: str = ""
    """Why these."""
    dataset_notes: tuple[str, ...] = ()
    """What a person should know about the datasets beside each other (`zk0.evaluation.dataset_notes`)."""
    late_joiners: dict[str, int] = {}
    """First round of each client that joined after the first round; `members` holds these clients too."""

    def statistics_of(self, report: DatasetReport) -> Statistics:
        """The statistics that a client's dataset or an evaluation set is normalized with.

        Raises:
            DatasetError: no client of the session had these joints and units before the first round.
        """
        return find_group(self.groups, report).statistics if self.groups else self.statistics

    def client_statistics(self, client: str) -> Statistics:
        """The statistics that a client's dataset is normalized with."""
        return self.statistics_of(next(member.report for member in self.members if member.client == client))

    def unseen_by(self, one: EvaluationSet) -> UnseenBy:
        """In what an evaluation set is unseen by the clients that are there now."""
        trained = {task for member in self.members for task in member.report.tasks}
        return "episode" if trained & {*one.report.tasks} else "task"

    def check_groups(self) -> None:
        """Check that every member and every evaluation set has a group of clients whose statistics fit.

        Raises:
            DatasetError: names every dataset that has none.
        """
        if self.groups:
            check_groups(self.groups, [*(m.report for m in self.members), *(s.report for s in self.sets)])

    @classmethod
    def read_from(cls, path: Path) -> Self | None:
        """The setup of a session that resumes; None if the session is new."""
        return cls.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else None

    def with_late_member(self, member: Member, round_number: int, notes: tuple[str, ...], path: Path) -> SessionSetup:
        """The setup with a further client, which takes part from this round on; it is written to `path`.

        Args:
            member: the client.
            round_number: its first round.
            notes: on all datasets, those of this client included.
            path: of the setup file.
        """
        changes = {
            "members": (*self.members, member),
            "late_joiners": {**self.late_joiners, member.client: round_number},
            "dataset_notes": notes,
        }
        extended = self.model_copy(update=changes)
        atomic_write_text(path, extended.model_dump_json(indent=2))
        return extended

    def write_or_verify(self, path: Path) -> None:
        """Write the setup of a new session; for one that resumes, check that this setup equals the written one.

        Raises:
            DatasetError: episodes of a client or of an evaluation set have changed.
            PolicyError: the policy has changed.
        """
        if path.is_file():
            self._check_unchanged(SessionSetup.model_validate_json(path.read_text(encoding="utf-8")))
            return
        atomic_write_text(path, self.model_dump_json(indent=2))

    def _check_unchanged(self, written: SessionSetup) -> None:
        before, now = _episode_digests(written), _episode_digests(self)
        renamed = sorted(now.keys() - before.keys())
        if renamed and sorted(before.values()) == sorted(now.values()):
            known = ", ".join(sorted(before.keys() - now.keys()))
            raise DatasetError(
                f"{', '.join(renamed)}: the session knows these episodes as {known}; "
                "keep the names in session.toml, and resume with --moved OLD=NEW"
            )
        if changed := sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)):
            raise DatasetError(
                f"{', '.join(changed)}: not the episodes that this session began with; "
                "restore them or start a new session"
            )
        if self.recipe != written.recipe.model_copy(update={"path": self.recipe.path}):
            raise PolicyError(
                f"{self.recipe.path}: not the policy that this session began with (frozen weights differ)"
            )


def _episode_digests(setup: SessionSetup) -> dict[str, list[tuple[str, ...]]]:
    """Digests of the episodes by client and by evaluation dataset; several sets may be of one dataset."""
    digests: dict[str, list[tuple[str, ...]]] = {m.client: [m.train_digests] for m in setup.members}
    for one in setup.sets:
        digests.setdefault(one.dataset, []).append(one.digests)
    return digests
