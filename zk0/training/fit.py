"""One client's work in one round: FedProx steps of AdamW on the trained weights."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zk0.errors import UpdateError
from zk0.records import ClientMetrics
from zk0.robot.policy import trained_parameters
from zk0.schedule import step_lr
from zk0.session import RoundPlan
from zk0.training.determinism import deterministic_kernels
from zk0.training.examples import Examples
from zk0.training.fedprox import add_proximal_gradient, squared_distance
from zk0.training.memory import advice, is_out_of_memory, most_that_fit
from zk0.training.scaffold import Control


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


@dataclass(frozen=True)
class _Batch:
    """Frames and what is drawn for them."""

    indices: Sequence[int]
    noise: Tensor
    time: Tensor

    def pieces(self, count: int) -> Iterator["_Batch"]:
        """The same batch, cut into so many parts of nearly equal size (or fewer: none is empty)."""
        edges = np.linspace(0, len(self.indices), min(count, len(self.indices)) + 1).round().astype(int).tolist()
        for start, end in pairwise(edges):
            yield _Batch(self.indices[start:end], self.noise[start:end], self.time[start:end])


def fit(
    policy: Any,
    examples: Examples,
    plan: RoundPlan,
    on_step: Callable[[int, int, float, float], None] | None = None,
    control: Control | None = None,
    batches: Iterator[list[int]] | None = None,
) -> ClientMetrics:
    """Train the policy in place from the weights it has, which are the proximal term's anchor.

    `on_step` is told step, steps, policy loss and learning rate; `control` corrects every gradient; `batches` are
    indices of frames for each step (none given: `shuffled_batches`).

    Raises:
        UpdateError: the loss or the gradient is not finite, or the batch does not fit into memory; says in which step.
    """
    started = perf_counter()
    training, scheduler = plan.training, plan.scheduler
    seed = round_seed(plan.terms.seed, plan.round, plan.client)
    generator = torch.Generator().manual_seed(seed)
    steps = count_steps(examples.frames, training.batch_size, training.local_steps, training.local_epochs)
    descent = _Descent(policy, examples, plan, control)
    losses, norms, rates = [], [], []
    policy.train()
    batches = batches or shuffled_batches(examples.frames, training.batch_size, generator)
    with _dropout_seeded(policy, seed), deterministic_kernels(training.deterministic):
        for step in range(steps):
            rate = step_lr(plan.lr, scheduler.eta_min, scheduler.type, step, steps)
            indices = next(batches)
            batch = _Batch(indices, *noise_and_time(len(indices), policy, generator))
            loss, norm = descent.step(batch, rate, f"{plan.client}: round {plan.round}, step {step}")
            losses.append(loss)
            norms.append(norm)
            rates.append(rate)
            if on_step:
                on_step(step + 1, steps, loss, rate)
    policy.eval()
    distance = squared_distance(descent.weights, descent.anchor)
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


@contextmanager
def _dropout_seeded(policy: Any, seed: int) -> Iterator[None]:
    """Dropout (of adapters) draws from torch's global state: it is ours meanwhile, and put back afterwards."""
    device = torch.device(policy.config.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class _Descent:
    """AdamW on the trained weights of one policy, with the proximal term."""

    def __init__(self, policy: Any, examples: Examples, plan: RoundPlan, control: Control | None) -> None:
        training = plan.training
        self._control = control
        self.weights = list(trained_parameters(policy).values())
        self.anchor = [w.detach().clone() for w in self.weights]
        self._policy, self._examples, self._plan = policy, examples, plan
        self._optimizer = torch.optim.AdamW(
            self.weights, plan.lr, training.betas, training.eps, training.weight_decay, fused=_fused(self.weights)
        )

    def step(self, batch: _Batch, rate: float, where: str) -> tuple[float, float]:
        """One optimizer step; the batch's policy loss and the gradient's norm before clipping."""
        try:
            return self._step(batch, rate, where)
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
            said = str(e)
        # out of the handler: the failed attempt's tensors are gone with its traceback
        tried = len(next(batch.pieces(self._plan.training.accumulate_steps)).indices)
        fits = most_that_fit(lambda count: self._try(batch, count), tried)
        raise UpdateError(f"{where}: {advice(said, tried, fits, self._plan.training.batch_size)}")

    def _step(self, batch: _Batch, rate: float, where: str) -> tuple[float, float]:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._add_gradient(batch, self._plan.training.accumulate_steps)
        if self._control is not None:
            self._control.correct([w.grad for w in self.weights if w.grad is not None])
        add_proximal_gradient(self.weights, self.anchor, self._plan.mu)
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights, self._plan.training.grad_clip_norm))
        if not (isfinite(loss) and isfinite(norm)):
            raise UpdateError(
                f"{where}: loss {loss}, gradient norm {norm}; "
                f"expected finite numbers (lr {rate:g}): lower training.lr or check the data set"
            )
        self._optimizer.step()
        return loss, norm

    def _add_gradient(self, batch: _Batch, pieces: int) -> float:
        """Backward through the batch's mean loss piece by piece, each weighted by the actions that count in it."""
        device = torch.device(self._policy.config.device).type
        counted, total = self._examples.actions_counted, 0.0
        all_counted = max(1, int(counted[list(batch.indices)].sum()))
        for piece in batch.pieces(pieces):
            share = int(counted[list(piece.indices)].sum()) / all_counted
            with torch.autocast(device, torch.bfloat16, enabled=self._plan.training.amp):
                loss = self._examples.loss(self._policy, piece.indices, piece.noise, piece.time) * share
            torch.autograd.backward(loss)
            total += loss.item()
        return total

    def _try(self, batch: _Batch, count: int) -> None:
        """As much memory as a step takes with `count` frames at once."""
        self._optimizer.zero_grad(set_to_none=True)
        moments = [] if self._optimizer.state else [torch.zeros_like(w) for w in self.weights for _ in range(2)]
        self._add_gradient(_Batch(batch.indices[:count], batch.noise[:count], batch.time[:count]), pieces=1)
        del moments
        self._optimizer.zero_grad(set_to_none=True)


def _fused(weights: Sequence[Tensor]) -> bool:
    return all(w.device.type in ("cpu", "cuda") and w.is_floating_point() for w in weights)
