"""The server's control variate of SCAFFOLD (arXiv 1910.06378, algorithm 1, line 17)."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.aggregation.blocks import blocks_of, in_order
from zk0.aggregation.combine import Values, weighted_mean
from zk0.aggregation.fold import Fold, Recipe
from zk0.aggregation.opened import Opened
from zk0.aggregation.reader import Reader
from zk0.aggregation.server_step import ServerStep
from zk0.records import ServerState
from zk0.tensor_spec import TensorSpec
from zk0.weights import Source, open_weights, writing
from zk0.wire import open_control

SLOT = "control"


def save_control(opened: Opened, before: Path | None, target: Path, clients: int, threads: int = 1) -> ServerState:
    """Write c + updates / clients * mean(c_i change), `clients` being all there are; `before` None: c was zero.

    Raises:
        UpdateError: an update has no control variates.
        CheckpointError: a file that cannot be read.
    """
    share, count = len(opened.updates) / clients, len(opened.updates)

    def take(mean: Values, old: Values, state: list[Values]) -> tuple[Values, list[Values]]:
        return old + share * mean, []

    recipe = Recipe(weighted_mean, np.ones(count), np.ones(count), step=ServerStep((), take))
    specs = opened.anchor.specs
    with ExitStack() as stack:
        old = stack.enter_context(open_weights(before)) if before else _Zeros(specs)
        changes: list[Source] = [stack.enter_context(open_control(u, opened.anchor)) for u in opened.updates]
        writer = stack.enter_context(writing(target, specs))
        reader = Reader(old, changes)
        for folded in in_order(Fold(reader, recipe), blocks_of(specs, writer.names, reader.length), threads):
            writer.write(folded.new)
    return ServerState(slot=SLOT, path=str(target), digest=writer.digest, bytes=writer.bytes)


class _Zeros:
    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:
        self.specs = specs

    def read(self, name: str, start: int, out: NDArray[Any]) -> None:
        out[:] = 0
