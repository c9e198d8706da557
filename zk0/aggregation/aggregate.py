"""New global weights of many updates: the same bits for any order of arrival, and small in memory."""

from collections.abc import Sequence
from contextlib import ExitStack
from math import isfinite, sqrt
from pathlib import Path

import numpy as np

from zk0.aggregation.blocks import blocks_of, in_order
from zk0.aggregation.control import SLOT, save_control
from zk0.aggregation.fold import Fold, Recipe, Sums
from zk0.aggregation.opened import Opened, open_round
from zk0.aggregation.reader import Reader
from zk0.aggregation.strategy import Terms, recipe_of
from zk0.errors import CheckpointError, UpdateError
from zk0.records import Contribution, Record, ServerState, Update
from zk0.weights import Source, open_weights, writing


class Aggregate(Record):
    """The new global weights, and how each client's update stands to their step."""

    path: str
    digest: str
    bytes: int
    param_update_norm: float
    """||w_k - w_(k-1)||, L2 over all tensors."""
    contributions: tuple[Contribution, ...]
    """In the order of client names."""
    server_state: tuple[ServerState, ...] = ()


def aggregate(
    updates: Sequence[Update], global_path: Path, target_path: Path, terms: Terms | None = None, threads: int = 1
) -> Aggregate:
    """The updates combined by the strategy of the terms (none given: FedAvg), written to `target_path`.

    Sums are float64 in the order of client names, so neither the order of arrival nor the number of threads changes a
    bit; the result is rounded once, to the dtype of the global weights. `n * w` is exact in float64 for float32 weights
    and n < 2^29: where all clients agree on a value (or there is only one), their mean is that very value. Memory is a
    few blocks a thread, whatever the number of clients or the size of the model. Updates must have passed
    `verify_update`. State of the server's optimizer is written beside the target.

    Raises:
        UpdateError: no update, too few for the strategy, a client twice, tensors that are not those of the global
            weights, or not finite.
        CheckpointError: a file that cannot be read. Nothing is left at `target_path` then.
    """
    terms = terms or Terms()
    with ExitStack() as stack:
        opened = stack.enter_context(open_round(updates, global_path))
        recipe = recipe_of(opened, terms, threads)
        slots = recipe.step.slots if recipe.step else ()
        state = [_slot(stack, terms.state.get(slot), opened.anchor) for slot in slots]
        specs = opened.anchor.specs
        paths = [target_path, *(_beside(target_path, slot) for slot in slots)]
        writers = [stack.enter_context(writing(path, specs)) for path in paths]
        reader, sums = Reader(opened.anchor, opened.sources), Sums.none(len(opened.sources))
        fold = Fold(reader, recipe, state)
        for folded in in_order(fold, blocks_of(specs, writers[0].names, reader.length), threads):
            for writer, values in zip(writers, (folded.new, *folded.state), strict=True):
                writer.write(values)
            sums.add(folded.sums)
        contributions = _contributions(opened, recipe, sums)
        control = _control(opened, terms, target_path, threads)
    return Aggregate(
        path=str(target_path),
        digest=writers[0].digest,
        bytes=writers[0].bytes,
        param_update_norm=sqrt(sums.step),
        contributions=contributions,
        server_state=tuple(
            ServerState(slot=slot, path=str(path), digest=writer.digest, bytes=writer.bytes)
            for slot, path, writer in zip(slots, paths[1:], writers[1:], strict=True)
        )
        + control,
    )


def _beside(target_path: Path, slot: str) -> Path:
    return target_path.with_name(f"server_{slot}.safetensors")


def _control(opened: Opened, terms: Terms, target_path: Path, threads: int) -> tuple[ServerState, ...]:
    if terms.settings.strategy != "scaffold":
        return ()
    clients = terms.clients or len(opened.updates)
    return (save_control(opened, terms.state.get(SLOT), _beside(target_path, SLOT), clients, threads),)


def _slot(stack: ExitStack, path: Path | None, anchor: Source) -> Source | None:
    if path is None:
        return None
    file = stack.enter_context(open_weights(path))
    if file.specs != anchor.specs:
        raise CheckpointError(f"{path}: its tensors are not those of the global weights")
    return file


def _contributions(opened: Opened, recipe: Recipe, sums: Sums) -> tuple[Contribution, ...]:
    """How each client's step stands to the step that was taken."""
    found = []
    shares, squares, products = recipe.weights / recipe.weights.sum(), sums.squares, sums.products
    for i, update in enumerate(opened.updates):
        if not (isfinite(squares[i]) and isfinite(sums.step)):
            raise UpdateError(f"{update.client}: the step has no finite length: it holds NaN or inf")
        lengths = sqrt(squares[i]) * sqrt(sums.step)
        found.append(
            Contribution(
                client=update.client,
                weight=float(shares[i]),
                update_norm=sqrt(squares[i]),
                cosine_to_mean=float(np.clip(products[i] / lengths, -1.0, 1.0)) if lengths else None,
                scale=float(recipe.scales[i]),
            )
        )
    return tuple(found)
