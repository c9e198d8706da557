"""Records of an evaluation on recorded episodes: per episode, per evaluation set, per round."""

from typing import Literal, Self

from pydantic import Field

from zk0.records.bounds import Count, Index, Measure, Name
from zk0.records.record import Record
from zk0.records.update_records import Refusal


class EpisodeScore(Record):
    """Scores of a model on one episode. Two models are compared by pairing their scores on the same episodes."""

    episode: Index
    """Index as stored in the dataset."""
    frames: Count
    """Frames that were evaluated."""
    actions: int = Field(strict=True, ge=1, le=10**12)
    """Actions of the frames' chunks that are not padding: the episode's weight in the means of its set."""
    policy_loss: Measure
    action_error_degrees: Measure


UnseenBy = Literal["task", "episode"]
"""In what an evaluation set is unseen: no client has its tasks, or clients have them in other episodes."""


class SetScore(Record):
    """Scores of a model on one evaluation set, or on one client's held-out episodes."""

    dataset: Name
    episodes: tuple[EpisodeScore, ...]
    frames: Count
    """Frames that were evaluated."""
    policy_loss: Measure
    """Mean over the episodes, weighted by actions."""
    policy_loss_se: Measure | None
    """Standard error over episodes; None with a single episode."""
    action_error_degrees: Measure
    """Mean absolute error of the predicted actions."""
    joint_error_degrees: tuple[Measure, ...]
    """(joints,) action error of each joint."""
    horizon_error_degrees: tuple[Measure, ...]
    """(chunk,) action error at each step of the action chunk; () for a client's held-out episodes."""
    unseen_by: UnseenBy | None = None
    """None: not an evaluation set of the server, or written by a version that did not record it."""

    def without_step_errors(self) -> Self:
        """Return the scores without the errors at each step of the action chunk, as a client sends them.

        Under weights that a server chooses, whose actions lie far off, they would tell the recorded actions one by one.
        """
        return self.model_copy(update={"horizon_error_degrees": ()})


class Evaluation(Record):
    """Scores of one round's global model on the evaluation sets, which no client trains on.

    `policy_loss` and `action_error_degrees` are unweighted means over the sets.
    """

    round: int = Field(ge=0)
    policy_loss: float
    policy_loss_se: float | None
    """Standard error of `policy_loss`; None if a set has none."""
    action_error_degrees: float
    sets: tuple[SetScore, ...]
    normalization: str
    seed: int
    """Seed of the noise."""
    times: int
    """Flow-matching times per frame."""
    seconds: float


class ClientScore(Record):
    """Scores of the global model on one client's held-out episodes, as the client reported them."""

    client: Name
    score: SetScore
    personal: SetScore | None = None
    """Scores of the client's own policy, which has its own values of some parameters; None: it has none."""

    def without_step_errors(self) -> Self:
        """Return the scores as a client sends them."""
        personal = self.personal and self.personal.without_step_errors()
        return self.model_copy(update={"score": self.score.without_step_errors(), "personal": personal})


class ClientEvaluation(Record):
    """Scores of one round's global model on the held-out episodes of every client that answered."""

    round: int = Field(ge=0)
    scores: tuple[ClientScore, ...]
    refusals: tuple[Refusal, ...] = ()
    """The clients without a score, and why."""
    normalization: str
    """With `client`, losses of different clients are not comparable."""
    seed: int
    """Seed of the noise."""
    times: int
    """Flow-matching times per frame."""
    seconds: float
