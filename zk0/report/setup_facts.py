"""What a session's setup file says, as far as its report shows it."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from zk0.errors import ReportError
from zk0.records import JointUnits, Member, NormalizationKind, Statistics, StatisticsGroup
from zk0.storage.session_folder import SessionFolder

_WHOSE: dict[NormalizationKind, str] = {
    "policy": "The statistics that the start policy carries",
    "pooled": "Pooled over the training frames of all clients",
    "client": "Pooled over the training frames of all clients; each client normalizes with its own",
}


class RecipeFacts(BaseModel):
    """The policy of a session; the other fields are not read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: str = "smolvla"
    """LeRobot's type of the policy."""


class SetupFacts(BaseModel):
    """The clients of a session and its statistics; the other fields of the file are not read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    recipe: RecipeFacts = RecipeFacts()
    members: tuple[Member, ...]
    """The session's clients, as they joined."""
    statistics: Statistics
    groups: tuple[StatisticsGroup, ...] = ()
    normalization: NormalizationKind = "pooled"
    normalization_reason: str = ""
    dataset_notes: tuple[str, ...] = ()

    def statistics_groups(self, units: JointUnits) -> Sequence[StatisticsGroup]:
        """Return the groups of clients; without groups, one for all clients with the contract's `units`."""
        return self.groups or (StatisticsGroup.of_all(self.statistics, units),)

    @property
    def normalization_sentence(self) -> str:
        """Whose statistics the session normalizes with, and why."""
        reason = f" ({self.normalization_reason})" if self.normalization_reason else ""
        return f"{_WHOSE[self.normalization]}{reason}."


def read_setup_facts(here: SessionFolder) -> SetupFacts:
    """Read the setup file of a session.

    Raises:
        ReportError: the file cannot be read.
    """
    try:
        return SetupFacts.model_validate_json(here.setup.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ReportError(f"{here.setup}: cannot be read ({e}); expected the setup of the session") from e
