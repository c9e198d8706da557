"""The optimizer steps of one client in one round: gradients of batches in pieces, proximal term, clipping, AdamW."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch import Tensor

from zk0.errors import UpdateError
from zk0.policy.kinds import kind_of
from zk0.policy.smolvla.action_expert import compiled_layers
from zk0.policy.trainable import sent_parameters, trainable_parameters
from zk0.settings.plans import RoundPlan
from zk0.training.batches import Batch
from zk0.training.compilation import compile_backend
from zk0.training.control_variate_correction import ControlVariateCorrection
from zk0.training.device import compute_capability, uses_bf16
from zk0.training.examples import Examples, StageableExamples
from zk0.training.fedprox import add_proximal_gradient
from zk0.training.out_of_memory import is_out_of_memory, largest_batch_that_fits, out_of_memory_advice
from zk0.training.staging import CopyPlan, DeviceStream, ResultOnItsWay, Staged, copy_plan

_DRAWN = "drawn."
"""Prefix of the random numbers in a staged piece, beside the parts that its examples name."""
_parts_found: dict[tuple[str, str, int], int] = {}
"""Recipe, training settings and frames -> in how many parts a batch fits into this process's memory."""
_backends_found: dict[tuple[str, str, int], str | None] = {}
"""Recipe, training settings and steps -> what compiles the action expert in this process."""
_MEASURED_GRADIENTS = 3


@dataclass(frozen=True)
class BatchPiece:
    """A part of a batch, as large as memory allows."""

    batch: Batch
    share: float
    """Of the actions of the whole batch that are not padding."""
    is_last: bool
    """Of its batch."""


StagedPieces = Iterator[tuple[BatchPiece, Callable[[], Staged]]]
"""Pieces of batches, each with a function that returns it on the policy's device."""


class LocalOptimizer:
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
        self.sent = list(sent_parameters(policy).values())
        """Without the personal ones, which have no anchor and no control variate."""
        self.anchor = [w.detach().clone() for w in self.sent]
        self._policy, self._examples, self._plan = policy, examples, plan
        self._parts = training.accumulate_steps
        self._copies = copies or copy_plan(str(policy.config.device))
        self._stream = DeviceStream(self._copies)
        self._bf16 = uses_bf16(training.amp, compute_capability(policy.config.device))
        self._adamw = torch.optim.AdamW(
            self.weights, plan.lr, training.betas, training.eps, training.weight_decay, fused=_fusible(self.weights)
        )

    def pieces(self, batch: Batch, count: int | None = None) -> Iterator[BatchPiece]:
        """The batch in `count` pieces (None: those of `training.accumulate_steps`)."""
        counts = self._examples.action_counts
        batch_count = max(1, int(counts[list(batch.indices)].sum()))
        parts = list(batch.split(count or self._parts))
        for part in parts:
            yield BatchPiece(part, int(counts[list(part.indices)].sum()) / batch_count, part is parts[-1])

    def stage(self, piece: BatchPiece) -> Staged:
        """Bring a piece to the policy's device."""
        batch, examples, copies = piece.batch, self._examples, self._copies

        def copy() -> Mapping[str, Any]:
            frames = examples.stage(batch.indices, copies) if isinstance(examples, StageableExamples) else {}
            return {**frames, **{f"{_DRAWN}{name}": copies.to_device(one) for name, one in batch.draws.items()}}

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

    def find_backend(self, steps: int) -> str | None:
        """Find out once in a process what compiles the action expert; None: nothing.

        Draws from torch's global random state; changes no weight.
        """
        training = self._plan.training
        key = (self._plan.recipe.model_dump_json(), training.model_dump_json(), steps)
        if key not in _backends_found:
            capability = compute_capability(self._policy.config.device)
            _backends_found[key] = compile_backend(training, capability, steps, self._gradient_seconds)
        return _backends_found[key]

    def _gradient_seconds(self, backend: str | None) -> float:
        """The fastest of a few gradients of a whole batch; those before, which compile, do not count."""
        batch = self._probe_batch(min(self._plan.training.batch_size, self._examples.frames))
        seconds = []
        with compiled_layers(backend):
            for _ in range(2 + _MEASURED_GRADIENTS):
                started = perf_counter()
                self._accumulate_gradient(batch, self._parts)  # waits for the loss
                seconds.append(perf_counter() - started)
                self._adamw.zero_grad(set_to_none=True)
        return min(seconds[2:])

    def _probe_batch(self, frames: int) -> Batch:
        """A batch with frames of all episodes."""
        indices = np.linspace(0, self._examples.frames - 1, frames).round().astype(int).tolist()
        return Batch(indices, kind_of(self._policy).training_draws(self._policy, frames, torch.Generator()))

    def _frames_that_fit(self, frames: int) -> int:
        batch = self._probe_batch(frames)
        fits = largest_batch_that_fits(lambda n: self._probe_memory(batch, n), 2 * frames)
        if fits is None:
            where = f"{self._plan.client}: round {self._plan.round}, before step 0"
            raise UpdateError(f"{where}: {out_of_memory_advice('', 1, None, frames)}")
        return fits

    def step(self, pieces: StagedPieces, rate: float, where: str) -> ResultOnItsWay:
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
        self, piece: BatchPiece, staged: Callable[[], Staged], following: StagedPieces, rate: float
    ) -> ResultOnItsWay:
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.zero_grad(set_to_none=True)
        loss = self._add_gradient(piece, staged())
        while not piece.is_last:
            piece, staged = next(following)
            loss = loss + self._add_gradient(piece, staged())
        if self._control is not None:
            self._control.correct([w.grad for w in self.sent if w.grad is not None])
        add_proximal_gradient(self.sent, self.anchor, self._plan.mu)
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self._plan.training.grad_clip_norm)
        self._adamw.step()
        return ResultOnItsWay(torch.stack([loss, norm.double()]))

    def _accumulate_gradient(self, batch: Batch, pieces: int) -> float:
        """Gradient of the batch's mean loss, piece by piece; the mean loss."""
        return sum(self._add_gradient(p, self.stage(p)).item() for p in self.pieces(batch, pieces))

    def _add_gradient(self, piece: BatchPiece, staged: Staged) -> Tensor:
        """Add the gradient of a piece's loss, weighted by its share of the batch; the weighted loss (float64)."""
        device = torch.device(self._policy.config.device).type
        with torch.autocast(device, torch.bfloat16, enabled=self._bf16):
            loss = self._loss(piece.batch.indices, dict(staged.ready())) * piece.share
        torch.autograd.backward(loss)
        return loss.detach().double()

    def _loss(self, indices: Sequence[int], parts: dict[str, Any]) -> Tensor:
        names = [name for name in parts if name.startswith(_DRAWN)]
        draws = {name.removeprefix(_DRAWN): parts.pop(name) for name in names}
        if isinstance(self._examples, StageableExamples):
            return self._examples.staged_loss(self._policy, parts, draws)
        return self._examples.loss(self._policy, indices, draws)

    def _probe_memory(self, batch: Batch, count: int) -> None:
        """Allocate as much memory as a step with `count` frames at once does, without changing a weight."""
        self._adamw.zero_grad(set_to_none=True)
        moments = [] if self._adamw.state else [torch.zeros_like(w) for w in self.weights for _ in range(2)]
        part = batch.cut(slice(count))
        ahead = [self.stage(piece) for _ in range(self._copies.batches_ahead) for piece in self.pieces(part, 1)]
        self._accumulate_gradient(part, pieces=1)
        del moments, ahead
        self._adamw.zero_grad(set_to_none=True)


def _fusible(weights: Sequence[Tensor]) -> bool:
    """Whether torch has a fused AdamW kernel for all of these weights."""
    return all(w.device.type in ("cpu", "cuda") and w.is_floating_point() for w in weights)
