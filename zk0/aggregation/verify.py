"""Whether an update may be used: of this round, from these weights, whole, and made of sane numbers."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from zk0.aggregation.blocks import blocks_of
from zk0.errors import CheckpointError, UpdateError
from zk0.records import Refusal, Update
from zk0.tensor_spec import TensorSpec
from zk0.weights import Source, digest, open_weights
from zk0.wire import open_control, open_update

_BLOCK = 1 << 18
_LARGEST = 1e15
"""Of any weight: no sum of squares of such numbers leaves float32's range, and no network needs them."""


def verify_update(
    update: Update, *, round: int, global_digest: str, global_path: Path, seen: Collection[str]
) -> Refusal | None:
    """Why this update must not be averaged, or None if it is good. Memory is a block.

    `global_path` is the file of the global weights, `seen` the clients of this round whose updates were taken already.
    """
    reason = _fault_of_record(update, round, global_digest, seen)
    if reason is None:
        try:
            reason = _fault_of_bytes(update)
            with open_weights(global_path) as anchor, open_update(update, anchor) as source:
                reason = reason or _fault_of_values(source, anchor.specs)
                if update.control and reason is None:
                    with open_control(update, anchor) as control:
                        reason = _fault_of_values(control, anchor.specs)
        except (CheckpointError, UpdateError) as e:
            reason = str(e)
    return None if reason is None else Refusal(client=update.client, reason=reason)


def _fault_of_record(update: Update, round: int, global_digest: str, seen: Collection[str]) -> str | None:
    if update.round != round:
        return f"is of round {update.round}, expected round {round}"
    if update.global_digest != global_digest:
        return f"was trained from weights {update.global_digest[:12]}, expected {global_digest[:12]}"
    if update.client in seen:
        return f"a second update of {update.client} in round {round}; the first is kept"
    return None


def _fault_of_bytes(update: Update) -> str | None:
    with open_weights(Path(update.path)) as file:
        found = digest(file)
    return None if found == update.digest else f"{update.path}: digest {found[:12]}, expected {update.digest[:12]}"


def _fault_of_values(source: Source, specs: Mapping[str, TensorSpec]) -> str | None:
    if fault := fault_of_specs(source.specs, specs):
        return fault
    for block in blocks_of(specs, specs, _BLOCK):
        values = np.empty(block.length, specs[block.name].dtype)
        source.read(block.name, block.start, values)
        if not (good := np.abs(values) <= min(_LARGEST, np.finfo(values.dtype).max)).all():
            return f"tensor {block.name} holds {values[~good][0]:g}, expected finite numbers up to {_LARGEST:g}"
    return None


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
