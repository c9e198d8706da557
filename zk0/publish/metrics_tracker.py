"""What all trackers have in common: one run per session, one step per round."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from zk0.publish.round_values import round_values
from zk0.records import Rollout, RoundRecord


class MetricsTracker(ABC):
    """The open run of a session at one tracking service.

    Args:
        next_round: the first round that the run does not have yet.
    """

    def __init__(self, next_round: int) -> None:
        self._next_round = next_round

    def log_rounds(self, history: Sequence[RoundRecord], rollouts: Sequence[Rollout] = ()) -> int:
        """Log the rounds that the run does not have yet, and return their number.

        Args:
            history: the finished rounds.
            rollouts: closed-loop attempts of these rounds' models.

        Raises:
            PublishError: the service does not take them.
        """
        new = [record for record in history if record.round >= self._next_round]
        for record in new:
            self.write_round(record, round_values(record, rollouts))
            self._next_round = record.next_round
        return len(new)

    @abstractmethod
    def write_round(self, record: RoundRecord, values: Mapping[str, float]) -> None:
        """Write the values of one round as one step."""
