"""An optimizer whose training can be stopped at any time and resumed; it also averages the weights over time."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zk0.storage.atomic import atomic_path

SAVE_SECONDS = 120
"""Seconds between two states on disk."""
REPORT_STEPS = 100
AVERAGED = 0.998
"""Share of the average that a step keeps (Polyak and Juditsky 1992); less in the first steps."""


class ResumableTraining:
    """AdamW with a one-cycle schedule; its state, the weights and the random state are on disk every two minutes.

    Args:
        modules: what is trained; parameters without gradients are saved too, and not changed.
        file: of the state.
        conditions: what decides the result; a state with other conditions is refused.
        groups: parameters, and their highest learning rate.
        steps: optimizer steps in all.
        warmup: steps with a rising learning rate.
    """

    def __init__(
        self,
        modules: nn.ModuleList,
        file: Path,
        conditions: Mapping[str, Any],
        groups: Sequence[tuple[Sequence[nn.Parameter], float]],
        steps: int,
        warmup: int,
    ) -> None:
        self._modules, self._file, self._conditions, self._steps = modules, file, dict(conditions), steps
        self._weights = [weight for weights, _ in groups for weight in weights]
        parameters = [{"params": list(weights), "lr": rate} for weights, rate in groups]
        self._optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=1e-3)
        rates = [rate for _, rate in groups]
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, rates, steps, pct_start=min(0.3, warmup / steps), div_factor=20, final_div_factor=100
        )
        self._average = {name: value.clone() for name, value in modules.state_dict().items()}
        self._losses: list[Tensor] = []
        """Of each step, by part."""
        if file.is_file():
            self._load()

    @property
    def step(self) -> int:
        """Steps that were made."""
        return len(self._losses)

    def run(self, losses_of_batch: Callable[[], Tensor], every: int, at_times: Callable[[], None]) -> None:
        """Make all steps that are missing; print the mean losses now and then.

        Args:
            losses_of_batch: returns the parts of the loss (parts,); their sum is minimized.
            every: steps between two calls of `at_times`; it is also called after the last step.
            at_times: stores or measures something.
        """
        saved = time.monotonic()
        while self.step < self._steps:
            self._make_step(losses_of_batch())
            if time.monotonic() - saved > SAVE_SECONDS:
                self._save()
                saved = time.monotonic()
            if self.step % REPORT_STEPS == 0:
                parts = torch.stack(self._losses[-REPORT_STEPS:]).mean(0).tolist()
                told = " + ".join(f"{part:.4f}" for part in parts)
                sys.stdout.write(f"step {self.step} of {self._steps}: loss {told}\n")
                sys.stdout.flush()
            if self.step % every == 0 or self.step == self._steps:
                at_times()
        self._save()

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within the block, the modules have the weights averaged over time."""
        present = {name: value.clone() for name, value in self._modules.state_dict().items()}
        self._modules.load_state_dict(self._average)
        try:
            yield
        finally:
            self._modules.load_state_dict(present)

    def _make_step(self, losses: Tensor) -> None:
        self._optimizer.zero_grad()
        losses.sum().backward()
        nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()
        self._schedule.step()
        self._losses.append(losses.detach())
        kept = min(AVERAGED, (1 + self.step) / (10 + self.step))
        for name, value in self._modules.state_dict().items():
            if value.is_floating_point():
                self._average[name].lerp_(value, 1 - kept)

    def _save(self) -> None:
        state = {
            "conditions": self._conditions,
            "weights": self._modules.state_dict(),
            "average": self._average,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "losses": torch.stack(self._losses) if self._losses else torch.empty(0),
            "random": torch.get_rng_state(),
        }
        with atomic_path(self._file) as temporary:
            torch.save(state, temporary)

    def _load(self) -> None:
        state = torch.load(self._file, weights_only=True)
        if state["conditions"] != self._conditions:
            raise SystemExit(
                f"{self._file}: started with {state['conditions']}, expected {self._conditions}; choose another --work"
            )
        self._modules.load_state_dict(state["weights"])
        self._average = state["average"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._losses = list(state["losses"])
        torch.set_rng_state(state["random"])
