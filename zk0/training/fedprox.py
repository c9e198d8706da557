"""The proximal term of FedProx (arXiv 1812.06127, equation 2), in place on gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def add_proximal_gradient(parameters: Sequence[Tensor], anchor: Sequence[Tensor], mu: float) -> None:
    """Add d/dw of mu/2 * ||w - anchor||^2 to each `.grad`; mu = 0 leaves them untouched, to the bit.

    >>> w = torch.tensor([3.0], requires_grad=True); w.grad = torch.tensor([0.25])
    >>> add_proximal_gradient([w], [torch.tensor([1.0])], mu=0.5); w.grad
    tensor([1.2500])
    """
    if mu == 0:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    if len(gradients) != len(parameters):
        raise AssertionError(f"{len(parameters) - len(gradients)} trained tensors have no gradient")
    torch._foreach_add_(gradients, list(parameters), alpha=mu)
    torch._foreach_add_(gradients, list(anchor), alpha=-mu)


@torch.no_grad()
def squared_distance(parameters: Sequence[Tensor], anchor: Sequence[Tensor]) -> float:
    """||w - anchor||^2, summed in float64 over tensors.

    >>> squared_distance([torch.tensor([3.0, 0.0])], [torch.tensor([1.0, 1.0])])
    5.0
    """
    return sum(float((p - a).pow(2).sum(dtype=torch.float64)) for p, a in zip(parameters, anchor, strict=True))
