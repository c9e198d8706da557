"""The server's control variate of SCAFFOLD (arXiv 1910.06378, algorithm 1, line 17)."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.aggregation.arrays import Float64Array
from zk0.aggregation.block_reader import BlockReader
from zk0.aggregation.block_reducer import BlockReducer
from zk0.aggregation.blocks import map_in_order, split_into_blocks
from zk0.aggregation.open_round import OpenRound
from zk0.aggregation.reduction_plan import ReductionPlan
from zk0.aggregation.weighted_mean import weighted_mean_of_updates
from zk0.records import ServerState
from zk0.weights.digests import algorithm_of
from zk0.weights.files import WeightsSource, open_weights
from zk0.weights.tensor_spec import TensorSpec
from zk0.weights.update_files import open_control_variates
from zk0.weights.writer import open_weights_writer

CONTROL_SLOT = "control"
"""The name of this state among those of the server; `zk0.storage.session_folder` knows its file."""


def save_server_control_variate(
    open_round: OpenRound, previous: Path | None, target: Path, clients: int, threads: int = 1
) -> ServerState:
    """Write c + (updates / clients) * mean of the clients' changes of c_i.

    Args:
        open_round: the updates, with their control variates.
        previous: file of c; None: c is zero.
        target: file of the new c.
        clients: the number of clients in the session, N in the paper.
        threads: how many compute.

    Raises:
        UpdateError: an update has no control variates.
        CheckpointError: a file that cannot be read.
    """
    count = len(open_round.updates)
    share = count / clients

    def add_share(
        mean: Float64Array, old: NDArray[Any], state: list[Float64Array]
    ) -> tuple[Float64Array, list[Float64Array]]:
        return old + share * mean, []

    plan = ReductionPlan(weighted_mean_of_updates, add_share, weights=np.ones(count), scales=np.ones(count))
    specs = open_round.global_weights.specs
    with ExitStack() as stack:
        old = stack.enter_context(open_weights(previous)) if previous else _Zeros(specs)
        changes: list[WeightsSource] = [
            stack.enter_context(open_control_variates(update, open_round.global_weights))
            for update in open_round.updates
        ]
        algorithm = algorithm_of(open_round.updates[0].global_digest)
        writer = stack.enter_context(open_weights_writer(target, specs, algorithm=algorithm))
        reader = BlockReader(old, changes)
        blocks = split_into_blocks(specs, writer.names, reader.length)
        for reduced in map_in_order(BlockReducer(reader, plan), blocks, threads):
            writer.write(reduced.new)
    return ServerState(slot=CONTROL_SLOT, path=str(target), digest=writer.digest, bytes=writer.bytes)


class _Zeros:
    """A source of zeros in the shape of given tensors."""

    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:
        self.specs = specs

    def read(self, name: str, start: int, out: NDArray[Any]) -> None:
        out[:] = 0
