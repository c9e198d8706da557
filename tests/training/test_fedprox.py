"""The proximal term against autograd."""

import pytest
import torch
from torch import Tensor

from zk0.training.fedprox import add_proximal_gradient, squared_distance


@pytest.fixture
def tensors() -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 3), (7,), (2, 2, 2)]
    weights = [torch.randn(s, generator=generator).requires_grad_() for s in shapes]
    for w in weights:
        w.grad = torch.randn(w.shape, generator=generator)
    return weights, [torch.randn(s, generator=generator) for s in shapes]


@pytest.mark.parametrize("mu", [0.001, 0.01, 1.0])
def test_the_gradient_is_that_of_autograd(tensors: tuple[list[Tensor], list[Tensor]], mu: float) -> None:
    weights, anchor = tensors
    before = [w.grad.clone() for w in weights]
    term = mu / 2 * sum(((w - a) ** 2).sum() for w, a in zip(weights, anchor, strict=True))
    expected = torch.autograd.grad(term, weights)
    add_proximal_gradient(weights, anchor, mu)
    for w, b, g in zip(weights, before, expected, strict=True):
        assert torch.allclose(w.grad, b + g, rtol=1e-6, atol=1e-6)
        assert not torch.equal(w.grad, b)


def test_without_mu_not_a_bit_changes(tensors: tuple[list[Tensor], list[Tensor]]) -> None:
    weights, anchor = tensors
    weights[0].grad[0, 0] = -0.0
    before = [w.grad.clone() for w in weights]
    add_proximal_gradient(weights, anchor, 0.0)
    assert all(w.grad.numpy().tobytes() == b.numpy().tobytes() for w, b in zip(weights, before, strict=True))


def test_a_tensor_without_gradient_is_an_error(tensors: tuple[list[Tensor], list[Tensor]]) -> None:
    weights, anchor = tensors
    weights[1].grad = None
    with pytest.raises(AssertionError, match="1 trainable tensors have no gradient"):
        add_proximal_gradient(weights, anchor, 0.1)


def test_distance_is_that_of_float64(tensors: tuple[list[Tensor], list[Tensor]]) -> None:
    weights, anchor = tensors
    expected = sum(float(((w.detach().double() - a.double()) ** 2).sum()) for w, a in zip(weights, anchor, strict=True))
    assert squared_distance(weights, anchor) == pytest.approx(expected, rel=1e-6)
