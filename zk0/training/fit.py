"""One client's local training in one round: AdamW steps on the trainable weights, with FedProx and SCAFFOLD."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import chain
from math import isfinite
from time import perf_counter
from typing import Any

import torch

from zk0.errors import UpdateError
from zk0.policy.kinds import kind_of
from zk0.policy.smolvla.action_expert import compiled_layers
from zk0.policy.unchanged_buffers import unchanged_buffers
from zk0.records import ClientMetrics
from zk0.rules.lr_schedules import step_lr
from zk0.settings.plans import RoundPlan
from zk0.training.batches import count_steps, draw_batches, round_seed, shuffled_batches
from zk0.training.control_variate_correction import ControlVariateCorrection
from zk0.training.determinism import training_kernels
from zk0.training.examples import Examples
from zk0.training.fedprox import squared_distance
from zk0.training.local_optimizer import LocalOptimizer
from zk0.training.staging import CopyPlan, ResultOnItsWay, copy_plan, staged_ahead

TrainingStepCallback = Callable[[int, int, float, float], None]
"""Called for each optimizer step, when its loss was read, with step, number of steps, policy loss and learning rate."""


def fit(
    policy: Any,
    examples: Examples,
    plan: RoundPlan,
    on_step: TrainingStepCallback | None = None,
    control: ControlVariateCorrection | None = None,
    batches: Iterator[list[int]] | None = None,
    copies: CopyPlan | None = None,
) -> ClientMetrics:
    """Train the policy in place; its weights at the start are the anchor of the proximal term.

    Args:
        policy: with the global weights installed.
        examples: the frames to train on.
        plan: learning rate, mu, schedule and training settings of the round.
        on_step: called for each optimizer step; on a GPU some steps later.
        control: SCAFFOLD's correction of each step's gradients.
        batches: frame indices of each step; None: `shuffled_batches`.
        copies: how batches reach the device; None: the plan for the policy's device. It does not change any number.

    Raises:
        UpdateError: loss or gradient is not finite, or the batch does not fit into memory; the message names the step.
        PolicyError: training changed a buffer of the policy.
    """
    started = perf_counter()
    training, device = plan.training, str(policy.config.device)
    seed = round_seed(plan.terms.seed, plan.round, plan.client)
    generator = torch.Generator().manual_seed(seed)
    steps = count_steps(examples.frames, training.batch_size, training.local_steps, training.local_epochs)
    copies = copies or copy_plan(device)
    optimizer = LocalOptimizer(policy, examples, plan, control, copies)
    kind_of(policy).set_training(policy)
    batches = batches or shuffled_batches(examples.frames, training.batch_size, generator)
    drawn = draw_batches(batches, steps, policy, generator)
    pieces = chain.from_iterable(map(optimizer.pieces, drawn))
    taken = _StepsTaken(plan, steps, copies.steps_unread, on_step)
    with _dropout_seeded(policy, seed), training_kernels(device, training.deterministic):
        optimizer.find_parts()
        backend = optimizer.find_backend(steps)
    with (
        _dropout_seeded(policy, seed),
        compiled_layers(backend),
        training_kernels(device, training.deterministic),
        unchanged_buffers(policy),
        closing(staged_ahead(pieces, optimizer.stage, copies.batches_ahead)) as staged,
    ):
        for step in range(steps):
            rate = step_lr(plan.lr, plan.scheduler.eta_min, plan.scheduler.type, step, steps)
            taken.add(rate, optimizer.step(staged, rate, taken.where(step)))
        taken.read_all()
    policy.eval()
    distance = squared_distance(optimizer.sent, optimizer.anchor)
    return ClientMetrics(
        policy_loss=sum(taken.losses) / steps,
        fedprox_loss=plan.mu / 2 * distance,
        grad_norm=sum(taken.norms) / steps,
        update_norm=distance**0.5,
        local_steps=steps,
        lr_first=taken.rates[0],
        lr_last=taken.rates[-1],
        seconds=perf_counter() - started,
    )


@contextmanager
def _dropout_seeded(policy: Any, seed: int) -> Iterator[None]:
    """Seed torch's global random state, which dropout and some policies' losses draw from, and restore it on exit."""
    device = torch.device(policy.config.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class _StepsTaken:
    """Losses, gradient norms and learning rates of the steps; those of the last steps may not have been read yet."""

    def __init__(self, plan: RoundPlan, steps: int, unread: int, on_step: TrainingStepCallback | None) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.rates: list[float] = []
        self._waiting: deque[ResultOnItsWay] = deque()
        self._plan, self._steps, self._unread, self._on_step = plan, steps, unread, on_step

    def where(self, step: int) -> str:
        """Client, round and step, for messages."""
        return f"{self._plan.client}: round {self._plan.round}, step {step}"

    def add(self, rate: float, result: ResultOnItsWay) -> None:
        """Add a step, and read the results of earlier ones.

        Raises:
            UpdateError: the loss or the gradient of a step was not finite.
        """
        self.rates.append(rate)
        self._waiting.append(result)
        self._read_all_but(self._unread)

    def read_all(self) -> None:
        """Read the results of all steps; raises as `add`."""
        self._read_all_but(0)

    def _read_all_but(self, unread: int) -> None:
        while len(self._waiting) > unread:
            step, (loss, norm) = len(self.losses), self._waiting.popleft().read()
            if not (isfinite(loss) and isfinite(norm)):
                raise UpdateError(
                    f"{self.where(step)}: loss {loss}, gradient norm {norm}; expected finite numbers "
                    f"(lr {self.rates[step]:g}): lower training.lr or check the dataset"
                )
            self.losses.append(loss)
            self.norms.append(norm)
            if self._on_step:
                self._on_step(step + 1, self._steps, loss, self.rates[step])
