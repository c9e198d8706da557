"""Records of a client's update: what it measured, how the weights are sent, whether the server used it."""

from typing import Literal

from pydantic import Field

from zk0.records.bounds import MAX_TEXT, Count, DigestText, Frames, Index, Measure, Name, Seconds, Text
from zk0.records.record import Record


class ClientMetrics(Record):
    """Metrics of a client's training in one round."""

    policy_loss: Measure
    """Mean of the policy's own loss over the round's optimizer steps."""
    fedprox_loss: Measure
    """mu/2 * ||w - w_global||^2 at the last step."""
    grad_norm: Measure
    """Mean over the steps of the gradient's L2 norm before clipping."""
    update_norm: Measure
    """||w - w_global|| after the last step."""
    local_steps: Count
    """Optimizer steps."""
    lr_first: Measure
    """Learning rate of the first step."""
    lr_last: Measure
    """Learning rate of the last step."""
    seconds: Seconds


class LoraShape(Record):
    """Rank and alpha of LoRA factors A (rank, in) and B (out, rank), which change a matrix by alpha / rank * B A."""

    rank: int = Field(ge=1, le=4096, strict=True)
    alpha: int = Field(ge=1, le=10**6, strict=True)


WireDtype = Literal["fp32", "bf16", "int8"]
"""Number format of the weights in a message; int8 has a scale for each channel (`zk0.weights.int8`)."""


DigestAlgorithm = Literal["blake3", "sha256"]
"""Algorithm of the digests of weights (`zk0.weights.digests`)."""


class WireFormat(Record):
    """How weights are sent between server and clients."""

    upload: WireDtype = "fp32"
    """fp32: a client sends its weights; bf16 and int8: it sends the delta, its weights minus the global ones."""
    compressed: bool = False
    """The upload is compressed without loss."""
    download: Literal["fp32", "bf16", "int8", "with_control_variates"] = "fp32"
    """with_control_variates: float32 weights, followed by SCAFFOLD's control variate of the server."""
    download_digest: DigestText | None = None
    """Digest of the downloaded file; None: it is the file of the global weights."""


class SummedUpdates(Record):
    """A sum of updates, of which the server has learned no single one (docs/secure-aggregation.md).

    Word x of the sum stands for the mean delta `x * step / share` (`zk0.weights.fixed_point`).
    """

    clients: tuple[Name, ...] = Field(min_length=1)
    """Whose updates were summed, in the order of their names."""
    dropped: tuple[Name, ...] = ()
    """Clients whose updates did not come after they had agreed on masks, which were removed from the sum."""
    roster: DigestText
    """SHA-256 of what the clients have agreed on."""
    threshold: int = Field(ge=2, strict=True)
    """Clients whose answers were needed."""
    bits: Literal[16, 32]
    """Of a word."""
    step: float = Field(gt=0, strict=True)
    """Of the grid."""
    share: float = Field(gt=0, strict=True)
    """Of the summed clients in the mean of all that had agreed on masks."""


SUM_NAME = "secure-sum"
"""The client's name in the record of a sum of updates."""


class Update(Record):
    """One client's trained weights: where the file lies, what it holds, how it was made."""

    client: Name
    round: Index
    global_digest: DigestText
    """Digest of the global weights from which the client started."""
    path: str = Field(max_length=MAX_TEXT)
    digest: DigestText
    """Digest of the tensors in the file, whether they are weights, deltas or factors."""
    bytes: Count
    """Bytes that were sent."""
    examples: Frames
    """The client's training frames: its weight in the average."""
    dataset: Name
    metrics: ClientMetrics
    lora: LoraShape | None = None
    """The file holds LoRA factors of this shape; None: it holds full matrices."""
    wire: WireFormat = WireFormat()
    has_control_variates: bool = False
    """The file also holds the change of the client's control variate (SCAFFOLD)."""
    summed: SummedUpdates | None = None
    """The file holds the sum of several clients' updates; examples and bytes are sums, metrics are means. None: it is
    the update of one client."""

    @property
    def client_count(self) -> int:
        """Of how many clients it is."""
        return len(self.summed.clients) if self.summed else 1


class Refusal(Record):
    """An update or another answer that the server rejected, or did not get."""

    client: Name
    reason: Text


class Contribution(Record):
    """How one accepted update entered the aggregate."""

    client: str
    weight: float
    """Its weight in the average; 0 if the strategy left it out."""
    update_norm: float
    """L2 norm of its delta."""
    cosine_to_mean: float | None
    """Cosine between its delta and the mean delta; None if one of the two is zero."""
    scale: float = 1.0
    """Factor for its delta before averaging: below 1 if the delta was clipped, or if it is stale."""
