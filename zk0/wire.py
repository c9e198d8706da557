"""What the file of an update holds: whatever travelled, the server's arithmetic reads dense weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from zk0.adapter import MergedWeights, factor_specs
from zk0.control import CONTROL, Half, with_control
from zk0.deltas import DeltaWeights, delta_specs
from zk0.records import Update
from zk0.tensor_spec import TensorSpec
from zk0.weights import Source, open_weights


def file_specs(update: Update, specs: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
    """The tensors that the file of an update holds, when `specs` are those of the global weights."""
    if update.adapters is not None:
        return factor_specs(specs, update.adapters.rank)
    if update.control:
        return with_control(specs)
    return specs if update.wire.up == "fp32" else delta_specs(specs, update.wire.up)


@contextmanager
def open_update(update: Update, anchor: Source) -> Iterator[Source]:
    """The trained weights of an update, dense, with the names, shapes and dtypes of the global weights `anchor`.

    Nothing is read yet but the file's head: `read` gives a block of one tensor. `anchor` must stay open meanwhile.

    Raises:
        CheckpointError: no file, or not a whole safetensors file.
        UpdateError: it does not hold what the update says: factors of adapters, or steps in few bits.
    """
    with open_weights(Path(update.path)) as file:
        if update.adapters is not None:
            yield MergedWeights(anchor, file, update.adapters)
        elif update.control:
            yield Half(file, anchor.specs)
        elif update.wire.up != "fp32":
            yield DeltaWeights(anchor, file, update.wire.up)
        else:
            yield file


@contextmanager
def open_control(update: Update, anchor: Source) -> Iterator[Source]:
    """The change of the client's control variate that came with an update (SCAFFOLD).

    Raises:
        CheckpointError: no file, or not a whole safetensors file.
        UpdateError: it holds none.
    """
    with open_weights(Path(update.path)) as file:
        yield Half(file, anchor.specs, CONTROL)
