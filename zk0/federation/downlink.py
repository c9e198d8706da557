"""The global weights as clients get them."""

from dataclasses import dataclass
from pathlib import Path

from zk0.bf16 import save_bf16
from zk0.control import save_with_control
from zk0.int8 import save_int8
from zk0.records import Wire
from zk0.session import FederationSettings, Plan
from zk0.weights import digest, open_weights


@dataclass(frozen=True)
class Sent:
    """The file that clients are sent, and what they are told of how weights travel."""

    path: Path
    wire: Wire

    @property
    def bytes(self) -> int:
        """That travel to each client."""
        return self.path.stat().st_size

    def told[P: Plan](self, plan: P) -> P:
        """A plan that goes with this file."""
        return plan.model_copy(update={"wire": self.wire})


def as_sent(settings: FederationSettings, weights: Path, target: Path, control: Path | None = None) -> Sent:
    """Global weights in the format of the session; where that is not their own file, it is written to `target`, once.

    `control` is the file of SCAFFOLD's control variates that go with them, where there is one.

    The server's own weights stay float32: what few bits lose is lost for this round's clients only, because they answer
    with steps, which are added to the server's own.
    """
    wire = Wire(up=settings.wire, packed=settings.compress)
    if control is not None and control.is_file():
        down = "with_control"
        if not target.is_file():
            save_with_control(weights, control, target)
    elif settings.wire_down != "fp32":
        down = settings.wire_down
        if not target.is_file():
            {"bf16": save_bf16, "int8": save_int8}[settings.wire_down](weights, target)
    else:
        return Sent(weights, wire)
    with open_weights(target) as file:
        return Sent(target, wire.model_copy(update={"down": down, "down_digest": digest(file)}))
