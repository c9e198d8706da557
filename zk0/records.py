"""The small frozen values that travel between the steps of a session.

Tensors never travel: a record names them by path, digest and bytes.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

STATE = "observation.state"
ACTION = "action"
CAMERA_PREFIX = "observation.images."


class Record(BaseModel):
    """A frozen value that refuses unknown fields and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# ── data ──────────────────────────────────────────────────────────────────────


class Finding(Record):
    """One broken rule of one data set.

    An `error` keeps the data set out of a federation, a `warning` does not. `repair` names the repair
    that undoes it; None means that it cannot be repaired.
    """

    rule: str
    severity: Literal["error", "warning"] = "error"
    where: str
    found: str
    expected: str
    repair: str | None = None

    def __str__(self) -> str:
        return f"{self.rule}: {self.where}: found {self.found}, expected {self.expected}"


class DatasetReport(Record):
    """What a check found. The facts are None where the files were too broken to tell them."""

    dataset: str
    root: str
    findings: tuple[Finding, ...] = ()
    robot_type: str | None = None
    fps: float | None = None
    episodes: int | None = None
    frames: int | None = None
    cameras: tuple[str, ...] = ()
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    units: Literal["degrees", "radians", "ticks", "normalized"] | None = None
    """Of states and actions; None where the numbers leave more than one possibility."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that keep this data set out of a federation."""
        return tuple(f for f in self.findings if f.severity == "error")


class Split(Record):
    """Which episodes (indices as stored in the data set) are trained on and which judge."""

    train: tuple[int, ...]
    held_out: tuple[int, ...] = ()


class Moments(Record):
    """Count, mean, std (ddof 0), min and max per dimension, in the data set's own units."""

    count: int = Field(ge=1)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]


class Statistics(Record):
    """Moments of state and action over training frames: all that normalisation needs."""

    state: Moments
    action: Moments


class PolicyRecipe(Record):
    """All that a client needs, besides the trained weights, to build the very policy of the server."""

    path: str
    revision: str | None = None
    cameras: tuple[str, ...]
    joints: int
    seed: int
    frozen_digest: str | None = None
    """SHA-256 of the frozen weights; whoever builds another policy is told so."""


class Member(Record):
    """What a client tells the server when it joins: counts, moments and digests, never a frame."""

    client: str
    dataset: str
    report: DatasetReport
    split: Split
    train_frames: int = Field(ge=1)
    statistics: Statistics
    train_digests: tuple[str, ...]
    """SHA-256 of states and actions of each training episode."""
    held_out_digests: tuple[str, ...]


# ── a round ───────────────────────────────────────────────────────────────────


class Decision(Record):
    """What the schedule decided for one round, and why."""

    round: int = Field(ge=1)
    lr: float = Field(gt=0)
    mu: float = Field(ge=0)
    lr_factor: float = 1.0
    """Product of the global adjustments so far; `lr` already contains it."""
    client_lr_factors: dict[str, float] = {}
    """Only clients whose factor is not 1."""
    clients: tuple[str, ...] | None = None
    """Who takes part; None: everybody."""
    reason: str


class ClientMetrics(Record):
    """What a client measured while it trained."""

    policy_loss: float
    """Mean of the policy's own loss over the round's steps."""
    fedprox_loss: float
    """mu/2 * ||w - w_global||^2 at the last step."""
    grad_norm: float
    """Mean over steps of the gradient's L2 norm before clipping."""
    update_norm: float
    """||w - w_global||."""
    local_steps: int
    lr_first: float
    lr_last: float
    seconds: float


class Adapters(Record):
    """Low-rank adapters: what their factors A (rank, in) and B (out, rank) stand for is alpha / rank * B A."""

    rank: int = Field(ge=1)
    alpha: int = Field(ge=1)


WireFormat = Literal["fp32", "bf16", "int8"]


class Wire(Record):
    """How weights travel between server and clients."""

    up: WireFormat = "fp32"
    """fp32: a client sends its weights; else its step from the global ones, in fewer bits."""
    packed: bool = False
    """What a client sends is compressed without loss."""
    down: Literal["fp32", "bf16", "int8", "with_control"] = "fp32"
    """with_control: float32 weights with SCAFFOLD's control variates."""
    down_digest: str | None = None
    """Of the file that the client was sent, where that is not the global weights themselves."""


class Update(Record):
    """One client's trained weights: where they lie and what they are."""

    client: str
    round: int
    global_digest: str
    path: str
    digest: str
    """Of the tensors in the file, whatever they stand for."""
    bytes: int
    """That travelled."""
    examples: int = Field(ge=1)
    """Training frames of the client: its weight in the average."""
    dataset: str
    metrics: ClientMetrics
    adapters: Adapters | None = None
    """The file holds the factors of these instead of whole matrices."""
    wire: Wire = Wire()
    control: bool = False
    """The file holds the change of the client's control variate too (SCAFFOLD)."""


class Refusal(Record):
    """An update (or an answer) that was not used, and why."""

    client: str
    reason: str


class Contribution(Record):
    """How one used update stands to the mean of all."""

    client: str
    weight: float
    """0 where the strategy left it out."""
    update_norm: float
    cosine_to_mean: float | None
    """None when one of the two has no length."""
    scale: float = 1.0
    """What its step was multiplied by before the mean: below 1 where it was clipped."""


class Checkpoint(Record):
    """The global weights after a round; round 0 is the start."""

    round: int = Field(ge=0)
    path: str
    digest: str
    bytes: int


class ServerState(Record):
    """What the server's optimizer remembers after a round: one value for each weight."""

    slot: str
    path: str
    digest: str
    bytes: int


class PrivacySpent(Record):
    """What an observer of the global weights may at most learn of whether a client took part, up to this round."""

    rounds: int = Field(ge=1)
    """With noise, this one included."""
    clients: int = Field(ge=1)
    """Averaged in this round."""
    clip_norm: float
    noise_multiplier: float
    noise_std: float
    """Of each coordinate of this round's mean."""
    epsilon: float
    delta: float


class EpisodeScore(Record):
    """One episode of an evaluation set under one model: what two models are paired by."""

    episode: int
    """Index as stored in the data set."""
    frames: int
    actions: int = Field(ge=1)
    """Actions of the frames' chunks that are not padding: the episode's weight in the set's means."""
    policy_loss: float
    action_error_degrees: float


class SetScore(Record):
    """One evaluation set under one model."""

    dataset: str
    episodes: tuple[EpisodeScore, ...]
    frames: int
    policy_loss: float
    policy_loss_se: float | None
    """Standard error over episodes; None with a single episode."""
    action_error_degrees: float
    joint_error_degrees: tuple[float, ...]
    horizon_error_degrees: tuple[float, ...]


class Evaluation(Record):
    """The global model of one round on sets that no client trained on.

    `policy_loss` and `action_error_degrees` are plain means over the sets.
    """

    round: int = Field(ge=0)
    policy_loss: float
    policy_loss_se: float | None
    action_error_degrees: float
    sets: tuple[SetScore, ...]
    normalization: str
    seed: int
    times: int
    seconds: float


class ClientScore(Record):
    """One client's held-out episodes under the global model, judged where they lie: numbers only."""

    client: str
    score: SetScore


class ClientEvaluation(Record):
    """The global model of one round on the held-out episodes of every client that answered."""

    round: int = Field(ge=0)
    scores: tuple[ClientScore, ...]
    refusals: tuple[Refusal, ...] = ()
    normalization: str
    """With `client`, losses are not comparable between clients."""
    seed: int
    times: int
    seconds: float


class RolloutSubject(Record):
    """Which model is tried at which task."""

    round: int | None
    """None for a policy that no session trained."""
    checkpoint: str
    """Digest of the weights that move the arm."""
    task: str
    client: str | None = None
    """The one that brought recordings of this task; None where nobody trained on it."""
    policy_loss: float | None = None
    """Of this model on the judging episodes of this task, open loop; None where there are none."""
    conditions: str
    """SHA-256 of how attempts are made: simulator, limit of steps, steps between looks."""


class Rollout(RolloutSubject):
    """One closed-loop attempt in the simulator."""

    kind: Literal["closed-loop"] = "closed-loop"
    seed: int
    success: bool
    steps: int
    duration_seconds: float
    """Simulated time until success or the limit."""
    fps: float
    smoothness: float | None
    """Spectral arc length of the joints' path: nearer to 0 is smoother; None where the arm did not move."""
    video: str | None = None
    """Path relative to the session folder."""
    camera_rows: tuple[int, int] | None = None
    """Rows of the video, first and end, that show the cameras; the rest is drawn."""
    video_fault: str | None = None
    """Why an attempt that was to be filmed has no video."""


class EpisodeFilm(Record):
    """One recorded episode on film, with what a policy predicts in each of its frames."""

    kind: Literal["open-loop"] = "open-loop"
    round: int
    checkpoint: str
    """Digest of the weights that predict."""
    dataset: str
    client: str | None
    """The one that holds the episode out; None where it is of a set that the server judges on."""
    episode: int
    success: None = None
    """Nothing was carried out."""
    duration_seconds: float
    fps: float
    policy_loss: float | None
    """Of this model on this episode; None where none of its frames was judged."""
    action_error_degrees: float | None
    video: str | None = None
    """Path relative to the session folder; of a client on another machine, to the folder it keeps to itself."""
    camera_rows: tuple[int, int] | None = None
    video_fault: str | None = None


class RoundRecord(Record):
    """One line of the ledger: everything that a finished round leaves behind."""

    round: int = Field(ge=0)
    decision: Decision | None = None
    """None for round 0, where nothing is trained."""
    checkpoint: Checkpoint
    updates: tuple[Update, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    contributions: tuple[Contribution, ...] = ()
    sent_bytes: int | None = None
    """Of the weights that each client was sent to train from."""
    updates_root: str | None = None
    """Of the Merkle tree over `updates` (`zk0.merkle`): with its receipt, a client proves that it was averaged."""
    param_update_norm: float | None = None
    """||w_k - w_(k-1)||."""
    server_state: tuple[ServerState, ...] = ()
    privacy: PrivacySpent | None = None
    """None without noise: nothing is promised then."""
    evaluation: Evaluation | None = None
    client_evaluation: ClientEvaluation | None = None
    seconds: float
    stage_seconds: dict[str, float] = {}
    """Where the time went: train, aggregate, evaluate, checkpoint."""
    finished_at: str
    """ISO 8601 with time zone."""

    @property
    def next_round(self) -> int:
        """The number of the round that comes after it."""
        return self.round + 1
