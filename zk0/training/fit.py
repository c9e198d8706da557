"""One client's local training in one round: AdamW steps on the trainable weights, with FedProx and SCAFFOLD."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from time import perf_counter
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch import Tensor

from zk0.errors import UpdateError
from zk0.policy.trainable import trainable_parameters
from zk0.records import ClientMetrics
from zk0.rules.lr_schedules import step_lr
from zk0.settings.plans import RoundPlan
from zk0.training.batches import Batch, count_steps, draw_batches, round_seed, shuffled_batches
from zk0.training.control_variate_correction import ControlVariateCorrection
from zk0.training.determinism import training_kernels
from zk0.training.device import compute_capability, uses_bf16
from zk0.training.examples import Examples, StageableExamples
from zk0.training.fedprox import add_proximal_gradient, squared_distance
from zk0.training.out_of_memory import is_out_of_memory, largest_batch_that_fits, out_of_memory_advice
from zk0.training.staging import CopyPlan, DeviceStream, ResultOnItsWay, Staged, copy_plan, staged_ahead

TrainingStepCallback = Callable[[int, int, float, float], None]
"""Called for each optimizer step, when its loss was read, with step, number of steps, policy loss and learning rate."""


_NOISE, _TIME = "flow_matching_noise", "flow_matching_time"
"""Parts of a staged piece beside those that its examples name."""
_parts_found: dict[tuple[str, str, int], int] = {}
"""Recipe, training settings and frames -> in how many parts a batch fits into this process's memory."""


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
    """
    started = perf_counter()
    training, device = plan.training, str(policy.config.device)
    seed = round_seed(plan.terms.seed, plan.round, plan.client)
    generator = torch.Generator().manual_seed(seed)
    steps = count_steps(examples.frames, training.batch_size, training.local_steps, training.local_epochs)
    copies = copies or copy_plan(device)
    optimizer = _LocalOptimizer(policy, examples, plan, control, copies)
    policy.train()
    batches = batches or shuffled_batches(examples.frames, training.batch_size, generator)
    drawn = draw_batches(batches, steps, policy, generator)
    pieces = chain.from_iterable(map(optimizer.pieces, drawn))
    taken = _StepsTaken(plan, steps, copies.steps_unread, on_step)
    with _dropout_seeded(policy, seed), training_kernels(device, training.deterministic):
        optimizer.find_parts()
    with (
        _dropout_seeded(policy, seed),
        training_kernels(device, training.deterministic),
        closing(staged_ahead(pieces, optimizer.stage, copies.batches_ahead)) as staged,
    ):
        for step in range(steps):
            rate = step_lr(plan.lr, plan.scheduler.eta_min, plan.scheduler.type, step, steps)
            taken.add(rate, optimizer.step(staged, rate, taken.where(step)))
        taken.read_all()
    policy.eval()
    distance = squared_distance(optimizer.weights, optimizer.anchor)
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
    """Seed torch's global random state, which LoRA dropout draws from, and restore it on exit."""
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


@dataclass(frozen=True)
class _Piece:
    """A part of a batch, as large as memory allows."""

    batch: Batch
    share: float
    """Of the actions of the whole batch that are not padding."""
    is_last: bool
    """Of its batch."""


_StagedPieces = Iterator[tuple[_Piece, Callable[[], Staged]]]
"""Pieces of batches, each with a function that returns it on the policy's device."""


class _LocalOptimizer:
    """AdamW on the trainable weights of one policy, with proximal term and gradient accumulation."""

    def __init__(
        self,
        policy: Any,
        examples: Examples,
        plan: RoundPlan,
        control: ControlVariateCorrection | None,
        copies: CopyPlan | None = None,
    ) -> None:
        training = plan.training
        self._control = control
        self.weights = list(trainable_parameters(policy).values())
        self.anchor = [w.detach().clone() for w in self.weights]
        self._policy, self._examples, self._plan = policy, examples, plan
        self._parts = training.accumulate_steps
        self._copies = copies or copy_plan(str(policy.config.device))
        self._stream = DeviceStream(self._copies)
        self._bf16 = uses_bf16(training.amp, compute_capability(policy.config.device))
        self._adamw = torch.optim.AdamW(
            self.weights, plan.lr, training.betas, training.eps, training.weight_decay, fused=_fusible(self.weights)
        )

    def pieces(self, batch: Batch, count: int | None = None) -> Iterator[_Piece]:
        """The batch in `count` pieces (None: those of `training.accumulate_steps`)."""
        counts = self._examples.action_counts
        batch_count = max(1, int(counts[list(batch.indices)].sum()))
        parts = list(batch.split(count or self._parts))
        for part in parts:
            yield _Piece(part, int(counts[list(part.indices)].sum()) / batch_count, part is parts[-1])

    def stage(self, piece: _Piece) -> Staged:
        """Bring a piece to the policy's device."""
        batch, examples, copies = piece.batch, self._examples, self._copies

        def copy() -> Mapping[str, Any]:
            frames = examples.stage(batch.indices, copies) if isinstance(examples, StageableExamples) else {}
            return {**frames, _NOISE: copies.to_device(batch.noise), _TIME: copies.to_device(batch.time)}

        return self._stream.run(copy)

    def find_parts(self) -> None:
        """With `training.accumulate_steps` 0: find out once in a process in how many parts a batch fits into memory.

        Draws from torch's global random state; changes no weight.

        Raises:
            UpdateError: not even one frame fits.
        """
        plan, frames = self._plan, min(self._plan.training.batch_size, self._examples.frames)
        if plan.training.accumulate_steps > 0:
            return
        key = (plan.recipe.model_dump_json(), plan.training.model_dump_json(), frames)
        if key not in _parts_found:
            _parts_found[key] = -(-frames // self._frames_that_fit(frames))
            logger.info("{}: {} frames of a batch in {} part(s)", plan.client, frames, _parts_found[key])
        self._parts = _parts_found[key]

    def _frames_that_fit(self, frames: int) -> int:
        indices = np.linspace(0, self._examples.frames - 1, frames).round().astype(int).tolist()  # of all episodes
        config = self._policy.config
        noise, time = torch.zeros(frames, config.chunk_size, config.max_action_dim), torch.full((frames,), 0.5)
        fits = largest_batch_that_fits(lambda n: self._probe_memory(Batch(indices, noise, time), n), 2 * frames)
        if fits is None:
            where = f"{self._plan.client}: round {self._plan.round}, before step 0"
            raise UpdateError(f"{where}: {out_of_memory_advice('', 1, None, frames)}")
        return fits

    def step(self, pieces: _StagedPieces, rate: float, where: str) -> ResultOnItsWay:
        """Make one optimizer step with the next batch; its policy loss, and the gradient's L2 norm before clipping.

        Raises:
            UpdateError: the batch does not fit into memory.
        """
        piece, staged = next(pieces)
        try:
            return self._step(piece, staged, pieces, rate)
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
            message = str(e)
        # outside the handler: the traceback, which held the failed attempt's tensors, is gone
        del staged
        failed = len(piece.batch.indices)
        fits = largest_batch_that_fits(lambda count: self._probe_memory(piece.batch, count), failed)
        raise UpdateError(f"{where}: {out_of_memory_advice(message, failed, fits, self._plan.training.batch_size)}")

    def _step(
        self, piece: _Piece, staged: Callable[[], Staged], following: _StagedPieces, rate: float
    ) -> ResultOnItsWay:
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.zero_grad(set_to_none=True)
        loss = self._add_gradient(piece, staged())
        while not piece.is_last:
            piece, staged = next(following)
            loss = loss + self._add_gradient(piece, staged())
        if self._control is not None:
            self._control.correct([w.grad for w in self.weights if w.grad is not None])
        add_proximal_gradient(self.weights, self.anchor, self._plan.mu)
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self._plan.training.grad_clip_norm)
        self._adamw.step()
        return ResultOnItsWay(torch.stack([loss, norm.double()]))

    def _accumulate_gradient(self, batch: Batch, pieces: int) -> float:
        """Gradient of the batch's mean loss, piece by piece; the mean loss."""
        return sum(self._add_gradient(p, self.stage(p)).item() for p in self.pieces(batch, pieces))

    def _add_gradient(self, piece: _Piece, staged: Staged) -> Tensor:
        """Add the gradient of a piece's loss, weighted by its share of the batch; the weighted loss (float64)."""
        device = torch.device(self._policy.config.device).type
        with torch.autocast(device, torch.bfloat16, enabled=self._bf16):
            loss = self._loss(piece.batch.indices, dict(staged.ready())) * piece.share
        torch.autograd.backward(loss)
        return loss.detach().double()

    def _loss(self, indices: Sequence[int], parts: dict[str, Any]) -> Tensor:
        noise, time = parts.pop(_NOISE), parts.pop(_TIME)
        if isinstance(self._examples, StageableExamples):
            return self._examples.staged_loss(self._policy, parts, noise, time)
        return self._examples.loss(self._policy, indices, noise, time)

    def _probe_memory(self, batch: Batch, count: int) -> None:
        """Allocate as much memory as a step with `count` frames at once does, without changing a weight."""
        self._adamw.zero_grad(set_to_none=True)
        moments = [] if self._adamw.state else [torch.zeros_like(w) for w in self.weights for _ in range(2)]
        part = Batch(batch.indices[:count], batch.noise[:count], batch.time[:count])
        ahead = [self.stage(piece) for _ in range(self._copies.batches_ahead) for piece in self.pieces(part, 1)]
        self._accumulate_gradient(part, pieces=1)
        del moments, ahead
        self._adamw.zero_grad(set_to_none=True)


def _fusible(weights: Sequence[Tensor]) -> bool:
    """Whether torch has a fused AdamW kernel for all of these weights."""
    return all(w.device.type in ("cpu", "cuda") and w.is_floating_point() for w in weights)
