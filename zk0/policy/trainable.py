"""The trainable weights of a policy: those that are sent, those that a client keeps, and the digest of all others."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zk0.errors import CheckpointError
from zk0.weights.files import LazyWeights, WeightsFile
from zk0.weights.tensor_spec import TensorSpec

PEFT_ADAPTER_INFIX = ".default."
"""peft puts this into the names of LoRA parameters, and leaves it out of its files."""


def trainable_parameters(policy: Any) -> dict[str, torch.nn.Parameter]:
    """The policy's parameters with `requires_grad`, by name, sorted by name."""
    return {n: p for n, p in sorted(policy.named_parameters()) if p.requires_grad}


def personal_parameters(policy: Any) -> dict[str, torch.nn.Parameter]:
    """The trainable parameters that a client keeps for itself, by name (`zk0.policy.scope.mark_personal`)."""
    personal: frozenset[str] = getattr(policy, "personal_parameters", frozenset())
    return {n: p for n, p in trainable_parameters(policy).items() if n in personal}


def sent_parameters(policy: Any) -> dict[str, torch.nn.Parameter]:
    """The trainable parameters that are sent and averaged: all but the personal ones, by name."""
    personal = personal_parameters(policy)
    return {n: p for n, p in trainable_parameters(policy).items() if n not in personal}


def cast_trainable(policy: Any) -> None:
    """Make the trainable parameters fp32: in bf16, most of them would not change in a step of a small learning rate."""
    for parameter in trainable_parameters(policy).values():
        parameter.data = parameter.data.float()


def trainable_weights(policy: Any) -> dict[str, NDArray[np.float32]]:
    """The trainable weights that are sent: fp32 arrays by name, LoRA factors as in `zk0.weights.lora_factors`.

    On a CPU the arrays share memory with the policy: further training changes them.
    """
    parameters = sent_parameters(policy)
    return {n.replace(PEFT_ADAPTER_INFIX, "."): p.detach().cpu().numpy() for n, p in parameters.items()}


def personal_weights(policy: Any) -> dict[str, NDArray[np.float32]]:
    """A copy of the personal weights: fp32 arrays by name."""
    return {n: p.detach().cpu().numpy().copy() for n, p in personal_parameters(policy).items()}


def install_weights(policy: Any, weights: Mapping[str, NDArray[Any]]) -> None:
    """Copy weights into the policy's trainable parameters that are sent.

    Raises:
        CheckpointError: names or shapes differ from the policy's; then the policy is unchanged.
    """
    _install(sent_parameters(policy), weights)


def install_personal(policy: Any, weights: Mapping[str, NDArray[Any]]) -> None:
    """Copy weights into the policy's personal parameters; raises as `install_weights`."""
    _install(personal_parameters(policy), weights)


def _install(parameters: Mapping[str, torch.nn.Parameter], weights: Mapping[str, NDArray[Any]]) -> None:
    if missing := sorted(parameters.keys() ^ weights.keys()):
        raise CheckpointError(f"{len(missing)} tensor names differ from the policy's, first: {missing[0]}")
    specs = weights.specs if isinstance(weights, LazyWeights) else None
    for name, parameter in parameters.items():
        if tuple(parameter.shape) != (found := specs[name].shape if specs else weights[name].shape):
            raise CheckpointError(f"{name}: shape {found}, expected {tuple(parameter.shape)}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if isinstance(weights, WeightsFile) and _can_read_in_place(parameter, weights.specs[name]):
                weights.read(name, 0, parameter.numpy().reshape(-1))  # a copy would take new memory
            else:
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])))


def _can_read_in_place(parameter: torch.Tensor, spec: TensorSpec) -> bool:
    """Whether the file's bytes are the parameter's bytes: a contiguous CPU tensor of the same dtype."""
    dtype = str(parameter.dtype).removeprefix("torch.")
    return parameter.device.type == "cpu" and parameter.is_contiguous() and dtype == spec.dtype


def frozen_digest(policy: Any) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors that are not sent; of personal ones, as they are."""
    sha = hashlib.sha256()
    sent = set(sent_parameters(policy))
    for name, tensor in sorted(policy.state_dict().items()):
        if name not in sent:
            sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
