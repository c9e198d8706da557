"""Aggregate the updates of a round into new global weights: reproducible to the bit, and with little memory."""

from collections.abc import Sequence
from contextlib import ExitStack
from math import isfinite, sqrt
from pathlib import Path

import numpy as np

from zk0.aggregation.block_reader import BlockReader
from zk0.aggregation.block_reducer import Accumulator, BlockReducer
from zk0.aggregation.blocks import map_in_order, split_into_blocks
from zk0.aggregation.open_round import OpenRound, open_round_files
from zk0.aggregation.reduction_plan import AggregationTerms, ReductionPlan, plan_reduction
from zk0.aggregation.server_control_variates import CONTROL_SLOT, save_server_control_variate
from zk0.aggregation.strategies import build_strategy
from zk0.errors import CheckpointError, UpdateError
from zk0.records import Contribution, Record, ServerState, Update
from zk0.weights.digests import algorithm_of
from zk0.weights.files import WeightsSource, open_weights
from zk0.weights.writer import open_weights_writer


class AggregationResult(Record):
    """The new global weights, and how each client's delta relates to their change."""

    path: str
    digest: str
    bytes: int
    param_update_norm: float
    """||w_k - w_(k-1)||, L2 over all tensors."""
    contributions: tuple[Contribution, ...]
    """In ascending order of client names."""
    server_state: tuple[ServerState, ...] = ()


def aggregate(
    updates: Sequence[Update],
    global_path: Path,
    target_path: Path,
    terms: AggregationTerms | None = None,
    threads: int = 1,
) -> AggregationResult:
    """Combine updates by the strategy of the terms (default: FedAvg) and write the new global weights.

    Sums are float64 in ascending order of client names, so neither the order of arrival nor the number of threads
    changes a bit; the result is rounded once, to the dtype of the global weights. `n * w` is exact in float64 for
    float32 weights and n < 2^29: where all clients agree on a value (or there is only one), their mean is that very
    value. Memory is a few blocks per thread, whatever the number of clients or the size of the model. Updates must
    have passed `verify_update`. The server's state is written beside `target_path`.

    Args:
        updates: of one round, in any order.
        global_path: file of the global weights that they were trained from, but for those that the terms name as stale.
        target_path: file of the new global weights.
        terms: settings, round and the server's state before it.
        threads: how many compute.

    Raises:
        UpdateError: no update, too few for the strategy, a client twice, tensors that are not those of the global
            weights, or not finite.
        CheckpointError: a file that cannot be read. Nothing is left at `target_path` then.
    """
    terms = terms or AggregationTerms()
    strategy = build_strategy(terms.settings)
    with ExitStack() as stack:
        open_round = stack.enter_context(open_round_files(updates, global_path, terms.stale))
        plan = plan_reduction(open_round, strategy, terms, threads)
        specs, slots = open_round.global_weights.specs, strategy.state_slots
        state = [_open_state(stack, terms.state.get(slot), open_round.global_weights) for slot in slots]
        paths = [target_path, *(_state_path(target_path, slot) for slot in slots)]
        algorithm = algorithm_of(open_round.updates[0].global_digest)
        writers = [stack.enter_context(open_weights_writer(path, specs, algorithm=algorithm)) for path in paths]
        reader, sums = BlockReader(open_round.global_weights, open_round.sources), Accumulator.zero(len(updates))
        blocks = split_into_blocks(specs, writers[0].names, reader.length)
        for reduced in map_in_order(BlockReducer(reader, plan, state), blocks, threads):
            for writer, values in zip(writers, (reduced.new, *reduced.state), strict=True):
                writer.write(values)
            sums.add(reduced.sums)
        contributions = _contributions(open_round, plan, sums)
        control = (
            _save_control_variate(open_round, terms, target_path, threads) if strategy.uses_control_variates else ()
        )
    return AggregationResult(
        path=str(target_path),
        digest=writers[0].digest,
        bytes=writers[0].bytes,
        param_update_norm=sqrt(sums.squared_change),
        contributions=contributions,
        server_state=tuple(
            ServerState(slot=slot, path=str(path), digest=writer.digest, bytes=writer.bytes)
            for slot, path, writer in zip(slots, paths[1:], writers[1:], strict=True)
        )
        + control,
    )


def _state_path(target_path: Path, slot: str) -> Path:
    return target_path.with_name(f"server_{slot}.safetensors")


def _save_control_variate(
    open_round: OpenRound, terms: AggregationTerms, target_path: Path, threads: int
) -> tuple[ServerState, ...]:
    previous, target = terms.state.get(CONTROL_SLOT), _state_path(target_path, CONTROL_SLOT)
    clients = terms.clients or len(open_round.updates)
    return (save_server_control_variate(open_round, previous, target, clients, threads),)


def _open_state(stack: ExitStack, path: Path | None, global_weights: WeightsSource) -> WeightsSource | None:
    if path is None:
        return None
    file = stack.enter_context(open_weights(path))
    if file.specs != global_weights.specs:
        raise CheckpointError(f"{path}: its tensors are not those of the global weights")
    return file


def _contributions(open_round: OpenRound, plan: ReductionPlan, sums: Accumulator) -> tuple[Contribution, ...]:
    """Return weight, norm and cosine of each client's delta."""
    found = []
    shares = plan.weights / plan.weights.sum()
    for i, update in enumerate(open_round.updates):
        if not (isfinite(sums.squared_deltas[i]) and isfinite(sums.squared_change)):
            raise UpdateError(f"{update.client}: the norm of its delta or of the mean is not finite: NaN or inf values")
        norms = sqrt(sums.squared_deltas[i]) * sqrt(sums.squared_change)
        found.append(
            Contribution(
                client=update.client,
                weight=float(shares[i]),
                update_norm=sqrt(sums.squared_deltas[i]),
                cosine_to_mean=float(np.clip(sums.products[i] / norms, -1.0, 1.0)) if norms else None,
                scale=float(plan.scales[i]),
            )
        )
    return tuple(found)
