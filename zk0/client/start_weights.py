"""Open the weights that the server sent with a plan, in whichever wire format."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zk0.settings.plans import ClientPlan
from zk0.weights.bf16 import open_bf16
from zk0.weights.digests import open_checked
from zk0.weights.files import Weights
from zk0.weights.int8 import open_int8


@contextmanager
def open_start_weights(plan: ClientPlan, path: Path) -> Iterator[Weights]:
    """The float32 weights that a plan starts from, from the file that the server sent, read one tensor at a time.

    If the server sent control variates (SCAFFOLD), they are among the tensors (`zk0.weights.control_variates`).

    Raises:
        CheckpointError: the file's digest is not the one that the plan names.
    """
    open_file = {"bf16": open_bf16, "int8": open_int8}.get(plan.wire.download, open_checked)
    with open_file(path, plan.wire.download_digest or plan.global_digest) as weights:
        yield weights
