"""The proximal term of FedProx (arXiv 1812.06127, equation 2), added to the gradients in place."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def add_proximal_gradient(parameters: Sequence[Tensor], anchor: Sequence[Tensor], mu: float) -> None:
    """Add d/dw of mu/2 * ||w - anchor||^2 to each `.grad`; with mu = 0 the gradients keep their exact bits.

    >>> w = torch.tensor([3.0], requires_grad=True); w.grad = torch.tensor([0.25])
    >>> add_proximal_gradient([w], [torch.tensor([1.0])], mu=0.5); w.grad
    tensor([1.2500])
    """
    if mu == 0:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    if len(gradients) != len(parameters):
        raise AssertionError(f"{len(parameters) - len(gradients)} trainable tensors have no gradient")
    torch._foreach_add_(gradients, list(parameters), alpha=mu)
    torch._foreach_add_(gradients, list(anchor), alpha=-mu)


@torch.no_grad()
def squared_distance(parameters: Sequence[Tensor], anchor: Sequence[Tensor]) -> float:
    """||w - anchor||^2 over all tensors, summed in float64.

    >>> squared_distance([torch.tensor([3.0, 0.0])], [torch.tensor([1.0, 1.0])])
    5.0
    """
    return sum(float((p - a).pow(2).sum(dtype=torch.float64)) for p, a in zip(parameters, anchor, strict=True))
