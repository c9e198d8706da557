"""The files of one round, open together: the global weights and every update that starts from them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from zk0.aggregation.verify import fault_of_specs
from zk0.errors import UpdateError
from zk0.records import Update
from zk0.weights import Source, open_weights
from zk0.wire import open_update


@dataclass(frozen=True)
class Opened:
    """Updates in the order of client names, which is the order of every sum, and where their weights are read."""

    updates: tuple[Update, ...]
    sources: tuple[Source, ...]
    anchor: Source


@contextmanager
def open_round(updates: Sequence[Update], global_path: Path) -> Iterator[Opened]:
    """The updates of a round beside the weights that they were trained from.

    Raises:
        UpdateError: no update, a client twice, or tensors that are not those of the global weights.
        CheckpointError: a file that cannot be read.
    """
    updates = tuple(sorted(updates, key=lambda update: update.client))
    clients = [update.client for update in updates]
    if not updates or len(set(clients)) < len(clients):
        raise UpdateError(f"clients {clients} cannot be averaged: expected at least one, each once")
    with ExitStack() as stack:
        anchor = stack.enter_context(open_weights(global_path))
        sources = tuple(stack.enter_context(open_update(update, anchor)) for update in updates)
        for update, source in zip(updates, sources, strict=True):
            if fault := fault_of_specs(source.specs, anchor.specs):
                raise UpdateError(f"{update.client}: {fault}")
        yield Opened(updates, sources, anchor)
