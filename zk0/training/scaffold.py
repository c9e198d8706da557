"""SCAFFOLD on a client (arXiv 1910.06378, algorithm 1): gradients corrected by what others would have said.

Each step descends `g - c_i + c`, where c_i is the client's control variate and c the mean of all. The client's new one
is the mean of its raw gradients over the round: with plain SGD that is option II of the paper to the letter,
`c_i - c + (x - y) / (K lr)`, and with AdamW it is still a gradient, which `x - y` no longer is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zk0.control import CONTROL

Arrays = Mapping[str, NDArray[Any]]


class Control:
    """One client's control variates in one round, for weights in the order of their names.

    Args:
        weights: by name; their device and shapes are those of the variates.
        server: c, by name; empty: zero.
        own: c_i, by name; empty: zero.
    """

    def __init__(self, weights: Mapping[str, Tensor], server: Arrays, own: Arrays) -> None:
        self._names = list(weights)
        self._correction = [_tensor(server, n, w) - _tensor(own, n, w) for n, w in weights.items()]
        self._sum = [torch.zeros_like(w) for w in weights.values()]
        self._steps = 0

    @torch.no_grad()
    def correct(self, gradients: Sequence[Tensor]) -> None:
        """Take the raw gradients into the mean, and add c - c_i to them in place."""
        torch._foreach_add_(self._sum, list(gradients))
        torch._foreach_add_(list(gradients), self._correction)
        self._steps += 1

    def new(self) -> dict[str, NDArray[np.float32]]:
        """The client's control variate after the round: its mean gradient."""
        means = zip(self._names, self._sum, strict=True)
        return {name: (total / max(1, self._steps)).cpu().numpy() for name, total in means}


def server_control(begun: Arrays) -> dict[str, NDArray[Any]]:
    """c, from what came with a plan; empty in the first round."""
    return {name.removeprefix(CONTROL): begun[name] for name in begun if name.startswith(CONTROL)}


def weights_alone(begun: Arrays) -> Arrays:
    """The weights that came with a plan, without control variates; not read where none came with them."""
    if not any(name.startswith(CONTROL) for name in begun):
        return begun
    return {name: begun[name] for name in begun if not name.startswith(CONTROL)}


def _tensor(arrays: Arrays, name: str, like: Tensor) -> Tensor:
    if name not in arrays:
        return torch.zeros_like(like)
    return torch.from_numpy(np.ascontiguousarray(arrays[name])).to(like)
