"""SmolVLA as a kind of policy, by LeRobot's own `forward` and `predict_action_chunk`.

Frames with cached features have the same losses by other code (`zk0.policy.smolvla.action_expert`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zk0.policy.policy_kind import Draws, ExampleWindow
from zk0.policy.smolvla.build_smolvla import load_smolvla
from zk0.policy.smolvla.draws import CHUNK_NOISE, NOISE, TIME, chunk_noise, draw_noise_and_time, fixed_noise_and_times
from zk0.policy.smolvla.trained_parts import select_trained


class SmolVLAKind:
    """SmolVLA; implements `zk0.policy.policy_kind.PolicyKind`. Its noise and times are paired between models."""

    def load(self, path: str, config: Any, revision: str | None = None) -> Any:
        """As `load_smolvla`."""
        return load_smolvla(path, config, revision)

    def select_trained(self, policy: Any, patterns: Sequence[str]) -> None:
        """As `zk0.policy.smolvla.trained_parts.select_trained`."""
        select_trained(policy, patterns)

    def example_window(self, policy: Any) -> ExampleWindow:
        """A chunk of actions, and the frame's own observation."""
        return ExampleWindow(actions=tuple(range(policy.config.chunk_size)), observations=None)

    def predicted_actions(self, policy: Any) -> int:
        """The length of a chunk."""
        return int(policy.config.chunk_size)

    def set_training(self, policy: Any) -> None:
        """LeRobot's training mode: the vision-language model stays in evaluation mode, and no buffer changes."""
        policy.train()

    def training_draws(self, policy: Any, count: int, generator: torch.Generator) -> Draws:
        """As `draw_noise_and_time`."""
        return draw_noise_and_time(count, policy, generator)

    def evaluation_draws(self, policy: Any, seed: int, frames: Sequence[tuple[int, int]], times: int) -> Draws:
        """As `fixed_noise_and_times`."""
        return fixed_noise_and_times(policy, seed, frames, times)

    def rollout_draws(self, policy: Any, generators: Sequence[torch.Generator]) -> Draws:
        """As `chunk_noise`."""
        return chunk_noise(policy, generators)

    def loss(self, policy: Any, batch: Mapping[str, Any], draws: Draws) -> Tensor:
        """The flow-matching loss, a mean over actions that are not padding."""
        loss, _ = policy.forward(dict(batch), noise=draws[NOISE], time=draws[TIME])
        return loss

    @torch.no_grad()
    def score(self, policy: Any, batch: Mapping[str, Any], draws: Draws) -> tuple[Tensor, Tensor]:
        """As `PolicyKind.score`: one pass for each time."""
        noise, time = draws[NOISE], draws[TIME]
        total = torch.zeros(len(time), dtype=torch.float64)
        for at in range(time.shape[1]):
            losses, _ = policy.forward(dict(batch), noise=noise[:, at], time=time[:, at], reduction="none")
            total += losses.cpu().double()
        return total, self.predict(policy, batch, draws)

    @torch.no_grad()
    def predict(self, policy: Any, batch: Mapping[str, Any], draws: Draws) -> Tensor:
        """As `PolicyKind.predict`."""
        policy.reset()
        chunk: Tensor = policy.predict_action_chunk(dict(batch), noise=draws[CHUNK_NOISE])
        policy.reset()
        return chunk
