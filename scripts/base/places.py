"""From the words of a task to the places of its objects: what the policy learns beside the actions.

A head predicts where the cube and the target that a task names lie. It reads what the action expert reads: the values
of the language model's layers at the task's last token. It is discarded afterwards. Two cubes of one shape differ in
color alone, so this teaches vision encoder and language model to tell them apart, with a far clearer signal than that
of the actions.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from zk0.policy.smolvla.prefix import Prefix, encode_prefix, prefix_geometry
from zk0.simulator.tasks import CAMERAS

OBJECTS = ("cube", "goal")
TARGETS = 5
"""x, y, z, cosine and sine of four times the rotation: a cube looks the same after a quarter turn."""
UNIT_M = np.array([0.05, 0.05, 0.03])
CENTER_M = np.array([[0.26, 0.0, 0.02], [0.0, 0.0, 0.05]])
"""In the frame of the arm (overhead camera), and in that of the gripper (wrist camera)."""
HEAD_WIDTH = 256


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


def object_targets(columns: Mapping[str, np.ndarray]) -> Tensor:
    """Where cube and target lie, (frames, OBJECTS, cameras, TARGETS); NaN if there is no target."""
    gripper_yaw = np.arctan2(columns["rot"][:, 1, 0], columns["rot"][:, 0, 0])

    def seen(position: np.ndarray, yaw: np.ndarray) -> np.ndarray:
        relative = np.einsum("nji,nj->ni", columns["rot"], position - columns["site"])
        views = [(position, yaw), (relative, yaw - gripper_yaw)]
        return np.stack([_target(p, y, center) for (p, y), center in zip(views, CENTER_M, strict=True)], 1)

    return torch.tensor(np.stack([seen(columns[o], columns[f"{o}_yaw"]) for o in OBJECTS], 1)).float()


def _target(position: np.ndarray, yaw: np.ndarray, center: np.ndarray) -> np.ndarray:
    return np.c_[(position - center) / UNIT_M, np.cos(4 * yaw) / 0.7, np.sin(4 * yaw) / 0.7]


def object_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Loss of the targets that are known."""
    known = ~torch.isnan(target)
    return functional.smooth_l1_loss(predicted[known], target[known], beta=0.3)


def object_errors(predicted: Tensor, target: Tensor) -> dict[str, float]:
    """Median distance in millimeters by object and camera."""
    apart = ((predicted - target)[..., :3] * torch.tensor(UNIT_M)).norm(dim=-1) * 1000
    return {
        f"{name}, {camera}": float(apart[:, i, k].nanmedian())
        for i, name in enumerate(OBJECTS)
        for k, camera in enumerate(CAMERAS)
    }
