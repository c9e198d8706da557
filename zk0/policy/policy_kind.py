"""The protocol of a kind of policy: what training, evaluation and rollouts need of LeRobot's policies.

`zk0.policy.kinds` finds the kind of a policy. The policy itself is LeRobot's module.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Draws = Mapping[str, Tensor]
"""The random numbers that losses and predictions start from, by name; the first axis of each tensor are the frames."""


@dataclass(frozen=True)
class ExampleWindow:
    """The frames around a frame that a policy is trained on."""

    actions: tuple[int, ...]
    """Of the loss, relative to the frame."""
    observations: tuple[int, ...] | None
    """Relative to the frame; None: the frame's own, without an axis of time."""


class PolicyKind(Protocol):
    """One kind of policy. Batches are dicts of tensors by LeRobot's feature key, as preprocessors return them."""

    def load(self, path: str, config: Any, revision: str | None = None) -> Any:
        """The saved policy with this configuration; every tensor comes from the saved file.

        Raises:
            PolicyError: the policy cannot be loaded, or the file lacks tensors.
        """

    def select_trained(self, policy: Any, patterns: Sequence[str]) -> None:
        """Make the parameters trainable that match a pattern, and no others; they become fp32.

        Args:
            policy: as `load` returned it.
            patterns: `fnmatch` patterns of parameter names; empty: the scope `expert`.

        Raises:
            PolicyError: a pattern matches no parameter that can be trained; the message names the nearest.
        """

    def example_window(self, policy: Any) -> ExampleWindow:
        """The actions and observations of a training example."""

    def predicted_actions(self, policy: Any) -> int:
        """Actions of a predicted chunk; the first one is the frame's own."""

    def set_training(self, policy: Any) -> None:
        """Set the policy to training mode, in which no buffer changes."""

    def training_draws(self, policy: Any, count: int, generator: torch.Generator) -> Draws:
        """The draws of a training loss of `count` frames, in the host's memory, from a generator on the CPU.

        What a policy draws besides comes from torch's global random state, which is seeded once for each round.
        """

    def evaluation_draws(self, policy: Any, seed: int, frames: Sequence[tuple[int, int]], times: int) -> Draws:
        """The draws of `score` and `predict`, in the host's memory, fixed by seed, episode and frame.

        Args:
            policy: decides the shapes.
            seed: of the evaluation.
            frames: (episode, frame in the episode) of each frame.
            times: draws of each frame's loss.
        """

    def rollout_draws(self, policy: Any, generators: Sequence[torch.Generator]) -> Draws:
        """The draws of `predict` for the next chunk of each attempt, from the attempts' generators on the CPU."""

    def loss(self, policy: Any, batch: Mapping[str, Any], draws: Draws) -> Tensor:
        """The policy's own loss (scalar) of a batch, with the `training_draws`, which are on the policy's device."""

    def score(self, policy: Any, batch: Mapping[str, Any], draws: Draws) -> tuple[Tensor, Tensor]:
        """The policy's own losses and its predictions, without a graph, with the `evaluation_draws`.

        Returns:
            (frames,) mean loss of each frame, float64 on the CPU, summed over its times; and the predictions.
        """

    def predict(self, policy: Any, batch: Mapping[str, Any], draws: Draws) -> Tensor:
        """Predicted actions (frames, actions, joints), normalized, without a graph."""
