"""Records of a round: what the schedule decided, the new global weights, and the line of the ledger."""

from pydantic import Field

from zk0.records.evaluation_records import ClientEvaluation, Evaluation
from zk0.records.record import Record
from zk0.records.update_records import Contribution, Refusal, Update


class RoundDecision(Record):
    """What the schedule decided for one round, and why."""

    round: int = Field(ge=1)
    lr: float = Field(gt=0)
    """Learning rate, all global adjustments included."""
    mu: float = Field(ge=0)
    """FedProx mu."""
    lr_factor: float = 1.0
    """Product of all global adjustments of the learning rate so far."""
    client_lr_factors: dict[str, float] = {}
    """Factor for the learning rate of single clients; 1 for those that are missing."""
    clients: tuple[str, ...] | None = None
    """Names of the sampled clients; None: all clients train."""
    reason: str


class Checkpoint(Record):
    """The global weights after a round; round 0 is the initial policy."""

    round: int = Field(ge=0)
    path: str
    digest: str
    bytes: int


class ServerState(Record):
    """One tensor per weight that the server's optimizer keeps after a round, such as its momentum."""

    slot: str
    """Name of the state: momentum, second moment, control variate."""
    path: str
    digest: str
    bytes: int


class PrivacySpent(Record):
    """Differential privacy of a client's participation, spent up to this round by publishing the global weights."""

    rounds: int = Field(ge=1)
    """Rounds with noise, this one included."""
    clients: int = Field(ge=1)
    """Clients that were averaged in this round."""
    clip_norm: float
    noise_multiplier: float
    noise_std: float
    """Standard deviation of the noise on each coordinate of this round's mean."""
    epsilon: float
    delta: float


class Arrival(Record):
    """One answer in a buffered round: from which weights it began, and how much it counts."""

    client: str
    began: int = Field(ge=1)
    """Round in which the client was sent its weights, those of round `began - 1`."""
    factor: float | None = Field(gt=0, le=1)
    """Factor for the update's delta by its staleness; None: there is no update, or it was refused."""
    seconds: float | None = None
    """From the request to the arrival, on the virtual clock if there is one; None: the server was restarted between."""
    waited_seconds: float | None = None
    """From the arrival to the server step, in which the client gets no other weights."""


class ClientAtWork(Record):
    """A client that was sent weights and has not answered yet."""

    client: str
    began: int = Field(ge=1)
    """Round in which it was sent the weights."""
    sent_at: float = 0.0
    """Seconds of the virtual clock."""


class BufferedRound(Record):
    """How a buffered round came about, and what its clients do after it: all that the next round must know."""

    arrivals: tuple[Arrival, ...]
    """In their order."""
    at_work: tuple[ClientAtWork, ...]
    """Clients that train from weights of this round's beginning or older ones, in the order in which they began."""
    ready: tuple[str, ...]
    """Clients that wait for weights, longest first."""
    clock: float = 0.0
    """Seconds of the virtual clock when the server stepped; 0 without one."""


class RoundRecord(Record):
    """One line of the ledger: everything that is recorded of a finished round."""

    round: int = Field(ge=0)
    decision: RoundDecision | None = None
    """None for round 0, which trains nothing."""
    checkpoint: Checkpoint
    updates: tuple[Update, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    contributions: tuple[Contribution, ...] = ()
    sent_bytes: int | None = None
    """Bytes of the weights that each client downloaded."""
    updates_root: str | None = None
    """Root of the Merkle tree over `updates` (`zk0.audit.merkle`)."""
    param_update_norm: float | None = None
    """||w_k - w_(k-1)||."""
    server_state: tuple[ServerState, ...] = ()
    privacy: PrivacySpent | None = None
    """None without noise."""
    buffered: BufferedRound | None = None
    """None where the server waited for all clients of the round."""
    evaluation: Evaluation | None = None
    client_evaluation: ClientEvaluation | None = None
    policy_files: dict[str, str] = {}
    """SHA-256 of each file of the policy that was saved in this round, but of its card and of its copy of this record;
    empty: none was saved before the record was written."""
    seconds: float
    stage_seconds: dict[str, float] = {}
    """Seconds of each stage of the round: train, aggregate, evaluate, ..."""
    finished_at: str
    """ISO 8601 with time zone."""

    @property
    def has_sum(self) -> bool:
        """Whether the updates are a sum, of which only means are known."""
        return any(update.summed for update in self.updates)

    @property
    def next_round(self) -> int:
        """Number of the next round."""
        return self.round + 1
