"""The training frames of several clients as one dataset, for centralized training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zk0.policy.policy_kind import Draws
from zk0.training.examples import Examples


class PooledExamples:
    """The frames of all parts, one part after the other; implements `zk0.training.examples.Examples`.

    Args:
        parts: the training frames of each client.
    """

    def __init__(self, parts: Sequence[Examples]) -> None:
        self.parts = parts
        self.frames = sum(part.frames for part in parts)
        self.action_counts = np.concatenate([part.action_counts for part in parts])

    def loss(self, policy: Any, indices: Sequence[int], draws: Draws) -> Tensor:
        """As `Examples.loss`: the parts' losses, each weighted by its share of the batch's unpadded actions."""
        losses, first = [], 0
        batch_count = max(1, int(self.action_counts[list(indices)].sum()))
        for part in self.parts:
            rows = [k for k, index in enumerate(indices) if first <= index < first + part.frames]
            own = [indices[k] - first for k in rows]
            if own:
                share = int(part.action_counts[own].sum()) / batch_count
                losses.append(part.loss(policy, own, {n: drawn[rows] for n, drawn in draws.items()}) * share)
            first += part.frames
        return torch.stack(losses).sum()
