"""Whether an update may be used: of this round, from these weights, whole, and made of sane numbers."""

import os
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from math import sqrt
from pathlib import Path

import numpy as np

from zk0.aggregation import kernels
from zk0.aggregation.blocks import Block, blocks_of, in_order
from zk0.aggregation.combine import widened
from zk0.errors import CheckpointError, UpdateError
from zk0.records import Refusal, Update
from zk0.tensor_spec import TensorSpec
from zk0.weights import Source, digest, open_weights
from zk0.wire import open_control, open_update

_BLOCK = 1 << 18
_THREADS = min(2, os.cpu_count() or 1)
"""Of a check: others train meanwhile, and the last check of a round is waited for."""
_LARGEST = 1e15
"""Of any weight: no sum of squares of such numbers leaves float32's range, and no network needs them."""


def verify_update(
    update: Update, *, round: int, global_digest: str, global_path: Path, seen: Collection[str]
) -> float | Refusal:
    """How far the update lies from the global weights (L2 over all tensors), or why it must not be averaged.

    Memory is a few blocks.

    `global_path` is the file of the global weights, `seen` the clients of this round whose updates were taken already.
    """
    try:
        _check_record(update, round, global_digest, seen)
        _check_bytes(update)
        with open_weights(global_path) as anchor, open_update(update, anchor) as source:
            norm = _measured(source, anchor)
            if update.control:
                with open_control(update, anchor) as control:
                    _measured(control, anchor)
    except (CheckpointError, UpdateError) as e:
        return Refusal(client=update.client, reason=str(e))
    return norm


def _check_record(update: Update, round: int, global_digest: str, seen: Collection[str]) -> None:
    if update.round != round:
        raise UpdateError(f"is of round {update.round}, expected round {round}")
    if update.global_digest != global_digest:
        raise UpdateError(f"was trained from weights {update.global_digest[:12]}, expected {global_digest[:12]}")
    if update.client in seen:
        raise UpdateError(f"a second update of {update.client} in round {round}; the first is kept")


def _check_bytes(update: Update) -> None:
    with open_weights(Path(update.path)) as file:
        found = digest(file)
    if found != update.digest:
        raise UpdateError(f"{update.path}: digest {found[:12]}, expected {update.digest[:12]}")


def _measured(source: Source, anchor: Source) -> float:
    """||source - anchor||, L2 over all tensors, once every value of the source was looked at."""
    if fault := fault_of_specs(source.specs, anchor.specs):
        raise UpdateError(fault)
    blocks = blocks_of(anchor.specs, anchor.specs, _BLOCK)
    return sqrt(sum(in_order(partial(_square, source, anchor), blocks, _THREADS)))


def _square(source: Source, anchor: Source, block: Block) -> float:
    values, old = np.empty((2, block.length), anchor.specs[block.name].dtype)
    source.read(block.name, block.start, values)
    anchor.read(block.name, block.start, old)
    largest = min(_LARGEST, float(np.finfo(values.dtype).max))
    bad, square = kernels.inspect(widened(values), widened(old), largest)
    if bad >= 0:
        raise UpdateError(f"tensor {block.name} holds {values[bad]:g}, expected finite numbers up to {_LARGEST:g}")
    return float(square)


def fault_of_specs(found: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec]) -> str | None:
    """Why tensors like these cannot be averaged into those of the global weights, or None if they can."""
    if missing := sorted(expected.keys() - found.keys()):
        return f"tensors are missing: {_some(missing)}"
    if extra := sorted(found.keys() - expected.keys()):
        return f"tensors that the global weights do not have: {_some(extra)}"
    for name, spec in expected.items():
        if not np.issubdtype(np.dtype(spec.dtype), np.floating):
            return f"tensor {name} is {spec.dtype} in the global weights; only floating point can be averaged"
        if found[name].shape != spec.shape:
            return f"tensor {name} has shape {found[name].shape}, expected {spec.shape}"
        if found[name].dtype != spec.dtype:
            return f"tensor {name} is {found[name].dtype}, expected {spec.dtype}"
    return None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
