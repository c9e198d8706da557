"""An optimizer whose training can be stopped at any time and resumed with the same result."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zk0.storage.atomic import atomic_path

SAVE_SECONDS = 120
"""Seconds between two states on disk."""
REPORT_STEPS = 250


class ResumableTraining:
    """AdamW with a one-cycle schedule; its state, the weights and the random state are on disk every two minutes.

    Args:
        modules: what is trained; parameters without gradients are saved too, and not changed.
        file: of the state.
        conditions: what decides the result; a state with other conditions is refused.
        rate: highest learning rate.
        steps: optimizer steps in all.
        betas: of AdamW.
        warmup: share of the steps with a rising learning rate.
    """

    def __init__(
        self,
        modules: nn.ModuleList,
        file: Path,
        conditions: Mapping[str, Any],
        rate: float,
        steps: int,
        betas: tuple[float, float],
        warmup: float,
    ) -> None:
        self._modules, self._file, self._conditions, self._steps = modules, file, dict(conditions), steps
        self._weights = [p for p in modules.parameters() if p.requires_grad]
        fused = self._weights[0].is_cuda
        self._optimizer = torch.optim.AdamW(self._weights, rate, betas=betas, weight_decay=1e-4, fused=fused)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimizer, rate, steps, pct_start=warmup)
        self._losses: list[Tensor] = []
        """Of each step; read from the device only when they are reported or saved."""
        if file.is_file():
            self._load()

    def run(self, loss_of_batch: Callable[[], Tensor]) -> None:
        """Make all steps that are missing; print the mean loss now and then."""
        saved = time.monotonic()
        while len(self._losses) < self._steps:
            self._step(loss_of_batch())
            if time.monotonic() - saved > SAVE_SECONDS:
                self._save()
                saved = time.monotonic()
            if len(self._losses) % REPORT_STEPS == 0:
                mean = float(torch.stack(self._losses[-REPORT_STEPS:]).mean())
                sys.stdout.write(f"{self._file.stem}: step {len(self._losses)} of {self._steps}: loss {mean:.4f}\n")
                sys.stdout.flush()
        self._save()

    def _step(self, loss: Tensor) -> None:
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()
        self._schedule.step()
        self._losses.append(loss.detach())

    def _save(self) -> None:
        state = {
            "conditions": self._conditions,
            "weights": self._modules.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "losses": torch.stack(self._losses).cpu(),
            "random": torch.get_rng_state(),
        }
        with atomic_path(self._file) as temporary:
            torch.save(state, temporary)

    def _load(self) -> None:
        state = torch.load(self._file, map_location="cpu", weights_only=True)
        if state["conditions"] != self._conditions:
            raise SystemExit(
                f"{self._file}: started with {state['conditions']}, expected {self._conditions}; choose another --work"
            )
        self._modules.load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._losses = list(state["losses"].to(self._weights[0].device))
        torch.set_rng_state(state["random"])
