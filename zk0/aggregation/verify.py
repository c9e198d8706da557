"""Verify that an update may be aggregated: of this round, from these global weights, complete, with sane values."""

import os
from collections.abc import Collection, Mapping
from functools import partial
from math import sqrt
from pathlib import Path

import numpy as np

from zk0.aggregation import kernels
from zk0.aggregation.arrays import float16_as_float32
from zk0.aggregation.blocks import Block, map_in_order, split_into_blocks
from zk0.errors import CheckpointError, UpdateError
from zk0.name_lists import join_names
from zk0.records import Refusal, Update
from zk0.weights.digests import algorithm_of, digest
from zk0.weights.files import WeightsSource, open_weights
from zk0.weights.tensor_spec import TensorSpec
from zk0.weights.update_files import open_control_variates, open_update

_VALUES_PER_BLOCK = 1 << 18
_THREADS = min(2, os.cpu_count() or 1)
"""Of one verification: clients train meanwhile, but the round waits for the verification of its last update."""
_LARGEST = 1e15
"""Of any weight: sums of squares of such numbers stay within float32's range, and no network needs larger ones."""


def verify_update(
    update: Update, *, round: int, global_digest: str, global_path: Path, already_received: Collection[str]
) -> float | Refusal:
    """Return the norm of the update's delta (L2 over all tensors), or why the update is rejected.

    Memory is a few blocks.

    Args:
        update: the record of an update whose file is on this machine.
        round: the round that is being collected.
        global_digest: of the global weights of that round.
        global_path: file of the global weights.
        already_received: clients whose updates of this round were accepted before.
    """
    try:
        _check_record(update, round, global_digest, already_received)
        with open_weights(global_path) as global_weights, open_update(update, global_weights) as source:
            if mismatch := spec_mismatch(source.specs, global_weights.specs):  # first: a digest reads the whole file
                raise UpdateError(mismatch)
            _check_digest(update)
            norm = _delta_norm(source, global_weights)
            if update.has_control_variates:
                with open_control_variates(update, global_weights) as control_variates:
                    _delta_norm(control_variates, global_weights)
    except (CheckpointError, UpdateError) as e:
        return Refusal(client=update.client, reason=str(e))
    return norm


def _check_record(update: Update, round: int, global_digest: str, already_received: Collection[str]) -> None:
    if update.round != round:
        raise UpdateError(f"is of round {update.round}, expected round {round}")
    if update.global_digest != global_digest:
        raise UpdateError(f"was trained from weights {update.global_digest[:12]}, expected {global_digest[:12]}")
    if update.client in already_received:
        raise UpdateError(f"a second update of {update.client} in round {round}; the first is used")


def _check_digest(update: Update) -> None:
    expected = algorithm_of(update.global_digest)
    if algorithm_of(update.digest) != expected:
        raise UpdateError(f"its digest is of {algorithm_of(update.digest)}, expected {expected} as this session uses")
    with open_weights(Path(update.path)) as file:
        found = digest(file, expected)
    if found != update.digest:
        raise UpdateError(f"{update.path}: digest {found[:12]}, expected {update.digest[:12]}")


def _delta_norm(source: WeightsSource, global_weights: WeightsSource) -> float:
    """Return ||source - global||, L2 over all tensors, after checking every value of the source."""
    if mismatch := spec_mismatch(source.specs, global_weights.specs):
        raise UpdateError(mismatch)
    blocks = split_into_blocks(global_weights.specs, global_weights.specs, _VALUES_PER_BLOCK)
    return sqrt(sum(map_in_order(partial(_squared_norm, source, global_weights), blocks, _THREADS)))


def _squared_norm(source: WeightsSource, global_weights: WeightsSource, block: Block) -> float:
    values, old = np.empty((2, block.length), global_weights.specs[block.name].dtype)
    source.read(block.name, block.start, values)
    global_weights.read(block.name, block.start, old)
    largest = min(_LARGEST, float(np.finfo(values.dtype).max))
    bad, square = kernels.delta_norm_kernel(float16_as_float32(values), float16_as_float32(old), largest)
    if bad >= 0:
        raise UpdateError(f"tensor {block.name} holds {values[bad]:g}, expected finite numbers up to {_LARGEST:g}")
    return float(square)


def spec_mismatch(found: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec]) -> str | None:
    """Return why tensors cannot be aggregated into the global weights, or None if they can.

    Args:
        found: the tensors of an update.
        expected: the tensors of the global weights.
    """
    if missing := sorted(expected.keys() - found.keys()):
        return f"tensors are missing: {join_names(missing, 3)}"
    if extra := sorted(found.keys() - expected.keys()):
        return f"tensors that the global weights do not have: {join_names(extra, 3)}"
    for name, spec in expected.items():
        if not np.issubdtype(np.dtype(spec.dtype), np.floating):
            return f"tensor {name} is {spec.dtype} in the global weights; only floating point can be aggregated"
        if found[name].shape != spec.shape:
            return f"tensor {name} has shape {found[name].shape}, expected {spec.shape}"
        if found[name].dtype != spec.dtype:
            return f"tensor {name} is {found[name].dtype}, expected {spec.dtype}"
    return None
