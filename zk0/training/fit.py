"""One client's work in one round: FedProx steps of AdamW on the trained weights."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from math import isfinite
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from zk0.errors import UpdateError
from zk0.records import ClientMetrics
from zk0.robot.policy import trained_parameters
from zk0.schedule import step_lr
from zk0.session import RoundPlan
from zk0.training.examples import Examples
from zk0.training.fedprox import add_proximal_gradient, squared_distance


def round_seed(seed: int, round_number: int, client: str) -> int:
    """A seed for one client in one round, the same on every engine and in every attempt.

    >>> round_seed(42, 1, "client_0") == round_seed(42, 1, "client_0") != round_seed(42, 2, "client_0")
    True
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{round_number}/{client}".encode()).digest()[:7])


def count_steps(frames: int, batch_size: int, local_steps: int | None, local_epochs: int | None) -> int:
    """Optimizer steps of one round: as asked for, or so many passes over all frames.

    >>> count_steps(frames=100, batch_size=32, local_steps=None, local_epochs=2)
    8
    """
    if local_steps is not None:
        return local_steps
    if local_epochs is None:
        raise AssertionError("neither local_steps nor local_epochs is set")
    return local_epochs * -(-frames // batch_size)


def shuffled_batches(frames: int, batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Indices of frames, pass after pass without end, each pass in a new order; the last batch may be short."""
    while True:
        order = torch.randperm(frames, generator=generator).tolist()
        for start in range(0, frames, batch_size):
            yield order[start : start + batch_size]


def noise_and_time(count: int, policy: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise (count, chunk, max_action_dim) ~ N(0, 1) and time (count,) ~ 0.001 + 0.999 Beta(1.5, 1), as SmolVLA's."""
    noise = torch.randn(count, policy.config.chunk_size, policy.config.max_action_dim, generator=generator)
    time = torch.rand(count, generator=generator).pow(1 / 1.5) * 0.999 + 0.001
    return noise.to(policy.config.device), time.to(policy.config.device)


def fit(
    policy: Any,
    examples: Examples,
    plan: RoundPlan,
    on_step: Callable[[int, int, float, float], None] | None = None,
) -> ClientMetrics:
    """Train the policy in place from the weights it has, which are the proximal term's anchor.

    `on_step` is told step, steps, policy loss and learning rate.

    Raises:
        UpdateError: the loss or the gradient is not finite; says in which step.
    """
    started = perf_counter()
    training, scheduler = plan.training, plan.scheduler
    generator = torch.Generator().manual_seed(round_seed(plan.terms.seed, plan.round, plan.client))
    steps = count_steps(examples.frames, training.batch_size, training.local_steps, training.local_epochs)
    weights = list(trained_parameters(policy).values())
    anchor = [w.detach().clone() for w in weights]
    optimizer = torch.optim.AdamW(
        weights, plan.lr, training.betas, training.eps, training.weight_decay, fused=_fused(weights)
    )
    losses, norms, rates = [], [], []
    policy.train()
    batches = shuffled_batches(examples.frames, training.batch_size, generator)
    for step in range(steps):
        rate = step_lr(plan.lr, scheduler.eta_min, scheduler.type, step, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _loss(policy, examples, next(batches), generator, training.amp)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        add_proximal_gradient(weights, anchor, plan.mu)
        norm = torch.nn.utils.clip_grad_norm_(weights, training.grad_clip_norm)
        value = loss.item()
        if not (isfinite(value) and torch.isfinite(norm)):
            raise UpdateError(
                f"{plan.client}: round {plan.round}, step {step}: loss {value}, gradient norm {float(norm)}; "
                f"expected finite numbers (lr {rate:g}): lower training.lr or check the data set"
            )
        optimizer.step()
        losses.append(value)
        norms.append(float(norm))
        rates.append(rate)
        if on_step:
            on_step(step + 1, steps, value, rate)
    policy.eval()
    distance = squared_distance(weights, anchor)
    return ClientMetrics(
        policy_loss=sum(losses) / len(losses),
        fedprox_loss=plan.mu / 2 * distance,
        grad_norm=sum(norms) / len(norms),
        update_norm=distance**0.5,
        local_steps=steps,
        lr_first=rates[0],
        lr_last=rates[-1],
        seconds=perf_counter() - started,
    )


def _loss(policy: Any, examples: Examples, indices: Sequence[int], generator: torch.Generator, amp: bool) -> Tensor:
    noise, time = noise_and_time(len(indices), policy, generator)
    device = torch.device(policy.config.device).type
    with torch.autocast(device, torch.bfloat16, enabled=amp):
        return examples.loss(policy, indices, noise, time)


def _fused(weights: Sequence[Tensor]) -> bool:
    return all(w.device.type in ("cpu", "cuda") and w.is_floating_point() for w in weights)
