"""The global weights in the wire format in which they are sent to clients."""

from dataclasses import dataclass
from pathlib import Path

from zk0.records import WireFormat
from zk0.settings.federation_settings import FederationSettings
from zk0.settings.plans import ClientPlan
from zk0.weights.bf16 import save_bf16
from zk0.weights.control_variates import save_with_control_variates
from zk0.weights.digests import digest
from zk0.weights.files import open_weights
from zk0.weights.int8 import save_int8


@dataclass(frozen=True)
class SentGlobalWeights:
    """The file that is sent to clients, and its wire format."""

    path: Path
    wire: WireFormat

    @property
    def bytes(self) -> int:
        """Size of the file: bytes that are sent to each client."""
        return self.path.stat().st_size

    def with_wire[P: ClientPlan](self, plan: P) -> P:
        """Return the plan with the wire format of this file."""
        return plan.model_copy(update={"wire": self.wire})


def encode_global_weights(
    settings: FederationSettings, weights: Path, target: Path, control: Path | None = None
) -> SentGlobalWeights:
    """Return the global weights in the session's wire format.

    The server's own weights stay float32. Quantization therefore affects this round's clients only: they answer with
    deltas, which are added to the server's own weights.

    Args:
        settings: with the wire formats.
        weights: file of the global weights.
        target: file that encoded weights are written to, unless it exists; float32 weights are sent from `weights`.
        control: file of SCAFFOLD's control variates, which are sent with the weights if it exists.
    """
    wire = WireFormat(upload=settings.wire, compressed=settings.compress)
    if control is not None and control.is_file():
        download = "with_control_variates"
        if not target.is_file():
            save_with_control_variates(weights, control, target)
    elif settings.wire_down != "fp32":
        download = settings.wire_down
        if not target.is_file():
            {"bf16": save_bf16, "int8": save_int8}[settings.wire_down](weights, target)
    else:
        return SentGlobalWeights(weights, wire)
    with open_weights(target) as file:
        changes = {"download": download, "download_digest": digest(file, settings.digest)}
    return SentGlobalWeights(target, wire.model_copy(update=changes))
