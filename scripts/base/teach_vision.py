"""Part 1 of the base policy: vision encoder and connector learn where the object of each color lies.

A head gets the image's tokens and a color, and predicts the position and rotation of the cube (or disc) of that color;
it is discarded afterwards. Two cubes of one shape differ in color alone, so an encoder that only learns where "the
cube" is cannot serve stacking. Targets of the wrist camera are relative to the gripper. Half of the images get their
color channels in random order, and the head's color too, so colors that are not in the recordings occur as well.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from base_columns import CAMERAS, Columns, camera_images, every_nth, frame_images, held_out_frames, training_frames
from object_errors import report_errors
from resumable import ResumableTraining
from torch import Tensor, nn
from torch.nn import functional

from zk0.simulator.tasks import find_task

TARGETS = 5
"""x, y, z, cosine and sine of four times the rotation: a cube looks the same after a quarter turn."""
HEAD_WIDTH = 256


class ObjectHead(nn.Module):
    """Predicts where the object of one color lies, from the tokens of one image."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.image = nn.Linear(tokens * width, HEAD_WIDTH)
        self.query = nn.Linear(4, HEAD_WIDTH)
        self.hidden = nn.Linear(HEAD_WIDTH, HEAD_WIDTH)
        self.out = nn.Linear(HEAD_WIDTH, TARGETS)

    def forward(self, tokens: Tensor, query: Tensor) -> Tensor:
        """Positions (images, TARGETS) of tokens (images, tokens, width) and queries (images, 4)."""
        mixed = functional.gelu(self.image(tokens.flatten(1)) + self.query(query))
        return self.out(functional.gelu(self.hidden(mixed)))


def object_targets(columns: Columns) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (frames, 2, 4), standardized targets (frames, 2, 2 cameras, TARGETS) of cube and goal, and their unit.

    A query is the object's color and whether it is a disc. Unknown targets are NaN. The unit (2 cameras, TARGETS) is a
    standard deviation, in meters for positions.
    """
    gripper_yaw = np.arctan2(columns["rot"][:, 1, 0], columns["rot"][:, 0, 0])

    def seen(position: np.ndarray, yaw: np.ndarray) -> np.ndarray:
        relative = np.einsum("nji,nj->ni", columns["rot"], position - columns["site"])
        views = [(position, yaw), (relative, yaw - gripper_yaw)]
        return np.stack([np.c_[p, np.cos(4 * y), np.sin(4 * y)] for p, y in views], 1)

    targets = np.stack([seen(columns[o], columns[f"{o}_yaw"]) for o in ("cube", "goal")], 1)
    mean, std = np.nanmean(targets, (0, 1)), np.nanstd(targets, (0, 1)) + 1e-6
    mean[:, 3:], std[:, 3:] = 0, 0.7
    names, row = np.unique(columns["task"], return_inverse=True)
    queries = np.stack([_queries(str(name)) for name in names])[row]
    return torch.tensor(queries).float(), torch.tensor((targets - mean) / std).float(), torch.tensor(std).float()


def _queries(name: str) -> np.ndarray:
    from so101_nexus.constants import COLOR_MAP

    task = find_task(name)
    goal = COLOR_MAP[task.onto][:3] if task.onto else [0.5] * 3
    return np.array([[*COLOR_MAP[task.cube][:3], 0.0], [*goal, float(task.motion == "place")]])


def teach_vision(policy: Any, columns: Columns, steps: int, rate: float, batch: int, work: Path) -> None:
    """Train vision encoder and connector; print the median error on held-out scenes."""
    vlm = policy.model.vlm_with_expert
    model, device = vlm.get_vlm_model(), policy.model.state_proj.weight.device
    images = camera_images(columns, device)
    queries, targets, unit = (part.to(device) for part in object_targets(columns))
    frames = training_frames(columns)
    with torch.no_grad():
        tokens = vlm.embed_image(frame_images(images["overhead"], slice(0, 1)) * 2 - 1)
    heads = nn.ModuleList([ObjectHead(*tokens.shape[1:]) for _ in CAMERAS]).to(device)
    policy.requires_grad_(False)
    modules = nn.ModuleList([model.vision_model, model.connector, heads])
    modules.requires_grad_(True)
    conditions = {"frames": len(frames), "steps": steps, "rate": rate, "batch": batch}
    training = ResumableTraining(modules, work / "vision.pt", conditions, rate, steps, betas=(0.9, 0.999), warmup=0.1)

    def loss_of_batch() -> Tensor:
        chosen = frames[torch.randint(0, len(frames), (batch,))]
        order = torch.argsort(torch.rand(batch, 3), 1)
        order[torch.rand(batch) < 0.5] = torch.arange(3)
        chosen, order = chosen.to(device), order.to(device)
        predicted = _predict(vlm, heads, images, chosen, queries[chosen], order)
        return object_loss(predicted, targets[chosen])

    training.run(loss_of_batch)
    for what, some in (("training scenes", frames), ("held-out scenes", held_out_frames(columns))):
        some = every_nth(some, 2000).to(device)
        report_errors(what, _predict_plain(vlm, heads, images, some, queries), targets[some], unit)
    policy.requires_grad_(False)


def _predict(
    vlm: Any, heads: nn.ModuleList, images: dict[str, Tensor], chosen: Tensor, queries: Tensor, order: Tensor
) -> Tensor:
    """Predictions (images, 2 objects, 2 cameras, TARGETS), with the color channels in this order (images, 3)."""
    count = len(chosen)
    stored = torch.cat([frame_images(images[c], chosen) for c in CAMERAS])
    channels = order.repeat(2, 1)[:, :, None, None].expand(-1, -1, *stored.shape[2:])
    tokens = vlm.embed_image(stored.gather(1, channels) * 2 - 1)
    colors = queries[..., :3].gather(2, order[:, None].expand(-1, 2, -1))
    asked = torch.cat([colors, queries[..., 3:]], 2).flatten(0, 1)
    by_camera = [
        head(tokens[i * count : (i + 1) * count].repeat_interleave(2, 0), asked).unflatten(0, (count, 2))
        for i, head in enumerate(heads)
    ]
    return torch.stack(by_camera, 2)


def object_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Loss of the targets that are known."""
    known = ~torch.isnan(target)
    return functional.smooth_l1_loss(predicted[known], target[known], beta=0.3)


@torch.no_grad()
def _predict_plain(
    vlm: Any, heads: nn.ModuleList, images: dict[str, Tensor], frames: Tensor, queries: Tensor
) -> Tensor:
    order = torch.arange(3, device=frames.device)
    parts = [_predict(vlm, heads, images, i, queries[i], order.expand(len(i), 3)) for i in frames.split(128)]
    return torch.cat(parts)
