"""SCAFFOLD on a client (arXiv 1910.06378, algorithm 1): control variates correct the gradients for client drift.

Each optimizer step descends `g - c_i + c`, where c_i is the client's control variate and c the server's, the mean of
all clients'. The client's new control variate is the mean of its raw gradients over the round. With plain SGD this is
exactly option II of the paper, `c_i - c + (x - y) / (K lr)`; with AdamW it is still a gradient, which `x - y` is not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zk0.weights.control_variates import CONTROL_PREFIX

Arrays = Mapping[str, NDArray[Any]]


class ControlVariateCorrection:
    """Corrects the gradients of one client in one round, and computes its new control variate.

    Args:
        weights: trainable weights by name; gradients come in their order.
        server: c, by name; empty means zero.
        client: c_i, by name; empty means zero.
    """

    def __init__(self, weights: Mapping[str, Tensor], server: Arrays, client: Arrays) -> None:
        self._names = list(weights)
        self._correction = [_tensor(server, n, w) - _tensor(client, n, w) for n, w in weights.items()]
        self._sum = [torch.zeros_like(w) for w in weights.values()]
        self._steps = 0

    @torch.no_grad()
    def correct(self, gradients: Sequence[Tensor]) -> None:
        """Add c - c_i to the gradients in place; the raw gradients enter the mean."""
        torch._foreach_add_(self._sum, list(gradients))
        torch._foreach_add_(list(gradients), self._correction)
        self._steps += 1

    def new_client_control(self) -> dict[str, NDArray[np.float32]]:
        """The client's control variate after the round, by name: its mean raw gradient."""
        means = zip(self._names, self._sum, strict=True)
        return {name: (total / max(1, self._steps)).cpu().numpy() for name, total in means}


def server_control(start: Arrays) -> dict[str, NDArray[Any]]:
    """c, by name, from the tensors that the server sent; empty in the first round."""
    return {name.removeprefix(CONTROL_PREFIX): start[name] for name in start if name.startswith(CONTROL_PREFIX)}


def without_control(start: Arrays) -> Arrays:
    """The weights among the tensors that the server sent; not read from disk if there is no control variate."""
    if not any(name.startswith(CONTROL_PREFIX) for name in start):
        return start
    return {name: start[name] for name in start if not name.startswith(CONTROL_PREFIX)}


def _tensor(arrays: Arrays, name: str, like: Tensor) -> Tensor:
    if name not in arrays:
        return torch.zeros_like(like)
    return torch.from_numpy(np.ascontiguousarray(arrays[name])).to(like)
