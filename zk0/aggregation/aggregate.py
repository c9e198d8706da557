"""The mean of the clients' weights: exact, the same bits for any order of arrival, and small in memory."""

from collections.abc import Sequence
from contextlib import ExitStack
from math import isfinite, sqrt
from pathlib import Path

from zk0.aggregation.blocks import blocks_of, in_order
from zk0.aggregation.fold import Fold, Sums
from zk0.aggregation.verify import fault_of_specs
from zk0.errors import UpdateError
from zk0.records import Contribution, Record, Update
from zk0.weights import open_weights, writing
from zk0.wire import open_update


class Aggregate(Record):
    """The new global weights, and how each client's update stands to their step."""

    path: str
    digest: str
    bytes: int
    param_update_norm: float
    """||w_k - w_(k-1)||, L2 over all tensors."""
    contributions: tuple[Contribution, ...]
    """In the order of client names."""


def aggregate(updates: Sequence[Update], global_path: Path, target_path: Path, threads: int = 1) -> Aggregate:
    """The clients' weights averaged by examples (FedAvg, arXiv 1602.05629, algorithm 1), written to `target_path`.

    Sums are float64 in the order of client names, so neither the order of arrival nor the number of threads changes a
    bit; the mean is rounded once, to the dtype of the global weights. `n * w` is exact in float64 for float32 weights
    and n < 2^29: where all clients agree on a value (or there is only one), the mean is that very value. Memory is a
    few blocks a thread, whatever the number of clients or the size of the model. Updates must have passed
    `verify_update`.

    Raises:
        UpdateError: no update, a client twice, tensors that are not those of the global weights, or not finite.
        CheckpointError: a file that cannot be read. Nothing is left at `target_path` then.
    """
    updates = sorted(updates, key=lambda update: update.client)
    clients = [update.client for update in updates]
    if not updates or len(set(clients)) < len(clients):
        raise UpdateError(f"clients {clients} cannot be averaged: expected at least one, each once")
    with ExitStack() as stack:
        anchor = stack.enter_context(open_weights(global_path))
        sources = [stack.enter_context(open_update(update, anchor)) for update in updates]
        for update, source in zip(updates, sources, strict=True):
            if fault := fault_of_specs(source.specs, anchor.specs):
                raise UpdateError(f"{update.client}: {fault}")
        writer = stack.enter_context(writing(target_path, anchor.specs))
        fold, sums = Fold(anchor, sources, [update.examples for update in updates]), Sums.none(len(updates))
        for new, part in in_order(fold, blocks_of(anchor.specs, writer.names, fold.length), threads):
            writer.write(new)
            sums.add(part)
        contributions = _contributions(updates, sums)
    return Aggregate(
        path=str(target_path),
        digest=writer.digest,
        bytes=writer.bytes,
        param_update_norm=sqrt(sums.step),
        contributions=contributions,
    )


def _contributions(updates: Sequence[Update], sums: Sums) -> tuple[Contribution, ...]:
    """How each client's step stands to the mean step."""
    examples, found = sum(update.examples for update in updates), []
    for update, square, product in zip(updates, sums.squares.tolist(), sums.products.tolist(), strict=True):
        if not (isfinite(square) and isfinite(sums.step)):
            raise UpdateError(f"{update.client}: the step has no finite length: it holds NaN or inf")
        lengths = sqrt(square) * sqrt(sums.step)
        found.append(
            Contribution(
                client=update.client,
                weight=update.examples / examples,
                update_norm=sqrt(square),
                cosine_to_mean=max(-1.0, min(1.0, product / lengths)) if lengths else None,
            )
        )
    return tuple(found)
