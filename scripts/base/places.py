"""From the words of a task to the places of its objects: what the language model learns beside the actions.

A head predicts where the cube and the target that a task names lie. It reads what the action expert reads: the values
of the language model's layers at the task's last token. It is discarded afterwards.
"""

from typing import Any

import torch
from base_columns import CAMERAS
from object_errors import OBJECTS
from teach_vision import HEAD_WIDTH, TARGETS
from torch import Tensor, nn

from zk0.policy.smolvla.prefix import Prefix, encode_prefix, prefix_geometry


class PlacesHead(nn.Module):
    """Predicts where the objects of a task lie, (frames, OBJECTS, cameras, TARGETS), from a prefix."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        geometry = prefix_geometry(policy)
        self.values = nn.Linear((geometry.layers - 1) * geometry.kv_heads * geometry.head_dim, HEAD_WIDTH)
        self.out = nn.Linear(HEAD_WIDTH, len(OBJECTS) * len(CAMERAS) * TARGETS)

    def forward(self, prefix: Prefix) -> Tensor:
        """The first layer's values are left out: they have seen no image."""
        last = prefix.mask.sum(1) - 1
        row = torch.arange(len(last), device=last.device)
        seen = torch.cat([values[row, last].flatten(1) for _, values in prefix.layers[1:]], 1)
        return self.out(nn.functional.gelu(self.values(seen))).unflatten(1, (len(OBJECTS), len(CAMERAS), TARGETS))


def encode_with_graph(policy: Any, features: Tensor, tokens: Tensor, mask: Tensor) -> Prefix:
    """The prefix of frames, cut to the longest of their tasks, with a graph for its gradients."""
    longest = int(mask.sum(1).max())
    return encode_prefix.__wrapped__(policy, features, tokens[:, :longest], mask[:, :longest])
