"""One client's local training in one round: AdamW steps on the trainable weights, with FedProx and SCAFFOLD."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from zk0.errors import UpdateError
from zk0.policy.trainable import trainable_parameters
from zk0.records import ClientMetrics
from zk0.rules.lr_schedules import step_lr
from zk0.settings.plans import RoundPlan
from zk0.training.batches import Batch, count_steps, draw_noise_and_time, round_seed, shuffled_batches
from zk0.training.control_variate_correction import ControlVariateCorrection
from zk0.training.determinism import training_kernels
from zk0.training.device import compute_capability, uses_bf16
from zk0.training.examples import Examples
from zk0.training.fedprox import add_proximal_gradient, squared_distance
from zk0.training.out_of_memory import is_out_of_memory, largest_batch_that_fits, out_of_memory_advice

TrainingStepCallback = Callable[[int, int, float, float], None]
"""Called after each optimizer step with step, number of steps, policy loss and learning rate."""


def fit(
    policy: Any,
    examples: Examples,
    plan: RoundPlan,
    on_step: TrainingStepCallback | None = None,
    control: ControlVariateCorrection | None = None,
    batches: Iterator[list[int]] | None = None,
) -> ClientMetrics:
    """Train the policy in place; its weights at the start are the anchor of the proximal term.

    Args:
        policy: with the global weights installed.
        examples: the frames to train on.
        plan: learning rate, mu, schedule and training settings of the round.
        on_step: called after each optimizer step.
        control: SCAFFOLD's correction of each step's gradients.
        batches: frame indices of each step; None: `shuffled_batches`.

    Raises:
        UpdateError: loss or gradient is not finite, or the batch does not fit into memory; the message names the step.
    """
    started = perf_counter()
    training, scheduler = plan.training, plan.scheduler
    seed = round_seed(plan.terms.seed, plan.round, plan.client)
    generator = torch.Generator().manual_seed(seed)
    steps = count_steps(examples.frames, training.batch_size, training.local_steps, training.local_epochs)
    optimizer = _LocalOptimizer(policy, examples, plan, control)
    losses, norms, rates = [], [], []
    policy.train()
    batches = batches or shuffled_batches(examples.frames, training.batch_size, generator)
    with _dropout_seeded(policy, seed), training_kernels(policy.config.device, training.deterministic):
        for step in range(steps):
            rate = step_lr(plan.lr, scheduler.eta_min, scheduler.type, step, steps)
            indices = next(batches)
            batch = Batch(indices, *draw_noise_and_time(len(indices), policy, generator))
            loss, norm = optimizer.step(batch, rate, f"{plan.client}: round {plan.round}, step {step}")
            losses.append(loss)
            norms.append(norm)
            rates.append(rate)
            if on_step:
                on_step(step + 1, steps, loss, rate)
    policy.eval()
    distance = squared_distance(optimizer.weights, optimizer.anchor)
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
    """Seed torch's global random state, which LoRA dropout draws from, and restore it on exit."""
    device = torch.device(policy.config.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class _LocalOptimizer:
    """AdamW on the trainable weights of one policy, with proximal term and gradient accumulation."""

    def __init__(
        self, policy: Any, examples: Examples, plan: RoundPlan, control: ControlVariateCorrection | None
    ) -> None:
        training = plan.training
        self._control = control
        self.weights = list(trainable_parameters(policy).values())
        self.anchor = [w.detach().clone() for w in self.weights]
        self._policy, self._examples, self._plan = policy, examples, plan
        self._bf16 = uses_bf16(training.amp, compute_capability(policy.config.device))
        self._adamw = torch.optim.AdamW(
            self.weights, plan.lr, training.betas, training.eps, training.weight_decay, fused=_fusible(self.weights)
        )

    def step(self, batch: Batch, rate: float, where: str) -> tuple[float, float]:
        """Make one optimizer step; the batch's policy loss, and the L2 norm of the gradient before clipping."""
        try:
            return self._step(batch, rate, where)
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
            message = str(e)
        # outside the handler: the traceback, which held the failed attempt's tensors, is gone
        failed = len(next(batch.split(self._plan.training.accumulate_steps)).indices)
        fits = largest_batch_that_fits(lambda count: self._probe_memory(batch, count), failed)
        raise UpdateError(f"{where}: {out_of_memory_advice(message, failed, fits, self._plan.training.batch_size)}")

    def _step(self, batch: Batch, rate: float, where: str) -> tuple[float, float]:
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.zero_grad(set_to_none=True)
        loss = self._accumulate_gradient(batch, self._plan.training.accumulate_steps)
        if self._control is not None:
            self._control.correct([w.grad for w in self.weights if w.grad is not None])
        add_proximal_gradient(self.weights, self.anchor, self._plan.mu)
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights, self._plan.training.grad_clip_norm))
        if not (isfinite(loss) and isfinite(norm)):
            raise UpdateError(
                f"{where}: loss {loss}, gradient norm {norm}; "
                f"expected finite numbers (lr {rate:g}): lower training.lr or check the dataset"
            )
        self._adamw.step()
        return loss, norm

    def _accumulate_gradient(self, batch: Batch, pieces: int) -> float:
        """Gradient of the batch's mean loss, piece by piece, each weighted by its share of actions; the mean loss."""
        device = torch.device(self._policy.config.device).type
        counts, total = self._examples.action_counts, 0.0
        batch_count = max(1, int(counts[list(batch.indices)].sum()))
        for piece in batch.split(pieces):
            share = int(counts[list(piece.indices)].sum()) / batch_count
            with torch.autocast(device, torch.bfloat16, enabled=self._bf16):
                loss = self._examples.loss(self._policy, piece.indices, piece.noise, piece.time) * share
            torch.autograd.backward(loss)
            total += loss.item()
        return total

    def _probe_memory(self, batch: Batch, count: int) -> None:
        """Allocate as much memory as a step with `count` frames at once does, without changing a weight."""
        self._adamw.zero_grad(set_to_none=True)
        moments = [] if self._adamw.state else [torch.zeros_like(w) for w in self.weights for _ in range(2)]
        self._accumulate_gradient(Batch(batch.indices[:count], batch.noise[:count], batch.time[:count]), pieces=1)
        del moments
        self._adamw.zero_grad(set_to_none=True)


def _fusible(weights: Sequence[Tensor]) -> bool:
    """Whether torch has a fused AdamW kernel for all of these weights."""
    return all(w.device.type in ("cpu", "cuda") and w.is_floating_point() for w in weights)
