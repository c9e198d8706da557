"""Read the file of an update as dense weights, in whatever format the client sent it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from zk0.records import Update
from zk0.weights.control_variates import CONTROL_PREFIX, PrefixedTensors, specs_with_control_variates
from zk0.weights.deltas import DeltaWeights, delta_specs
from zk0.weights.files import EXTRA_HEADER_BYTES, WeightsSource, open_weights
from zk0.weights.fixed_point import SummedWeights
from zk0.weights.lora_factors import MergedWeights, lora_factor_specs
from zk0.weights.tensor_spec import TensorSpec, file_bytes

_EXTRA_SHARE = 50
"""Incompressible values may add 1/50 to a file."""


def update_file_specs(update: Update, specs: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
    """Return the tensors that the file of an update must hold, for global weights with these specs."""
    if update.lora is not None:
        return lora_factor_specs(specs, update.lora.rank)
    if update.has_control_variates:
        return specs_with_control_variates(specs)
    return specs if update.wire.upload == "fp32" else delta_specs(specs, update.wire.upload)


def update_file_bytes(expected: Mapping[str, TensorSpec]) -> int:
    """Return the largest size of an update's file as it is sent, which must hold these tensors."""
    size = file_bytes(expected)
    return size + size // _EXTRA_SHARE + EXTRA_HEADER_BYTES


@contextmanager
def open_update(update: Update, global_weights: WeightsSource) -> Iterator[WeightsSource]:
    """Open the trained weights of an update, dense, with the names, shapes and dtypes of the global weights.

    Only the file's header is read; `read` of the source reads a block. `global_weights` must stay open meanwhile.

    Raises:
        CheckpointError: no file, or not a complete safetensors file.
        UpdateError: it does not hold what the update names: dense weights, deltas, LoRA factors, control variates.
    """
    with open_weights(Path(update.path)) as file:
        if update.summed is not None:
            yield SummedWeights(global_weights, file, update.summed)
        elif update.lora is not None:
            yield MergedWeights(global_weights, file, update.lora)
        elif update.has_control_variates:
            yield PrefixedTensors(file, global_weights.specs)
        elif update.wire.upload != "fp32":
            yield DeltaWeights(global_weights, file, update.wire.upload)
        else:
            yield file


@contextmanager
def open_control_variates(update: Update, global_weights: WeightsSource) -> Iterator[WeightsSource]:
    """Open the change of the client's control variate that came with an update (SCAFFOLD).

    Raises:
        CheckpointError: no file, or not a complete safetensors file.
        UpdateError: it holds no control variates of such weights.
    """
    with open_weights(Path(update.path)) as file:
        yield PrefixedTensors(file, global_weights.specs, CONTROL_PREFIX)
