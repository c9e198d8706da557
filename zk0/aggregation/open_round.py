"""The files of one round, opened together: the global weights and every update that was trained from them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from zk0.aggregation.stale_updates import StaleStart, open_stale_update
from zk0.aggregation.verify import spec_mismatch
from zk0.errors import UpdateError
from zk0.records import Update
from zk0.weights.files import WeightsSource, open_weights
from zk0.weights.update_files import open_update


@dataclass(frozen=True)
class OpenRound:
    """The updates of a round in ascending order of client names, which is the order of every sum.

    Attributes:
        updates: their records.
        sources: the dense trained weights of each update.
        global_weights: the weights that the updates were trained from.
    """

    updates: tuple[Update, ...]
    sources: tuple[WeightsSource, ...]
    global_weights: WeightsSource


@contextmanager
def open_round_files(
    updates: Sequence[Update], global_path: Path, stale: Mapping[str, StaleStart] | None = None
) -> Iterator[OpenRound]:
    """Open the updates of a round and the global weights that they were trained from.

    Args:
        updates: in any order.
        global_path: file of the global weights.
        stale: what the updates of some clients were trained from instead.

    Raises:
        UpdateError: no update, a client twice, or tensors that are not those of the global weights.
        CheckpointError: a file that cannot be read.
    """
    updates = tuple(sorted(updates, key=lambda update: update.client))
    clients = [update.client for update in updates]
    if not updates or len(set(clients)) < len(clients):
        raise UpdateError(f"updates of {clients} cannot be aggregated: expected at least one, each client once")
    with ExitStack() as stack:
        global_weights = stack.enter_context(open_weights(global_path))
        sources = tuple(
            stack.enter_context(
                open_stale_update(update, stale[update.client].weights, global_weights)
                if stale and update.client in stale
                else open_update(update, global_weights)
            )
            for update in updates
        )
        for update, source in zip(updates, sources, strict=True):
            if mismatch := spec_mismatch(source.specs, global_weights.specs):
                raise UpdateError(f"{update.client}: {mismatch}")
        yield OpenRound(updates, sources, global_weights)
