"""The largest change of a weight in a round, beside PyTorch's AdamW with the gradients that move it farthest."""

import numpy as np
import pytest
import torch
from round_histories import LR, session_with

from zk0.rules.delta_limit import largest_adam_step, largest_delta
from zk0.rules.lr_schedules import step_lr


def moved(gradients, betas, rates):
    """Return how far AdamW moves a weight."""
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=LR, betas=betas, eps=0, weight_decay=0)
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.full((1,), float(gradient), dtype=torch.float64)
        before = weight.item()
        optimizer.step()
    return abs(weight.item()), abs(weight.item() - before) / rates[-1]


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.9, 0.999), (0.5, 0.9), (0.9, 0.81)])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_the_last_step_is_reached_and_not_exceeded(betas, steps):
    """Equality in the Cauchy-Schwarz inequality: gradients proportional to a_k / b_k."""
    ratio = betas[0] / betas[1]
    _, found = moved([ratio**k for k in reversed(range(steps))], betas, [LR] * steps)
    assert found == pytest.approx(largest_adam_step(steps, betas), rel=1e-6)


@pytest.mark.parametrize("kind", ["cosine", "cosine_warm_restarts"])
def test_no_gradients_move_a_weight_farther_in_a_round(kind):
    session, steps = session_with(type=kind), 40
    rates = [step_lr(LR, session.scheduler.eta_min, kind, step, steps) for step in range(steps)]
    limit, draw = largest_delta(session, LR, steps), np.random.default_rng(0)
    ways = [np.ones(steps), np.geomspace(1, 1e3, steps), np.abs(draw.normal(size=steps)), draw.normal(size=steps)]
    found = [moved(gradients, session.training.betas, rates)[0] for gradients in ways]
    assert max(found) <= limit
    assert max(found) > 0.8 * limit
