"""Part 2 of the base policy: language model, action expert and projections learn the actions of the scripted expert.

They learn by SmolVLA's flow matching, from the cached output of the frozen vision encoder and connector. The language
model also learns where the objects of a task lie (`scripts/base/places.py`), with the frames of
`scripts/base/random_scenes.py` too, which have many more pairs of colors.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from base_columns import (
    CAMERAS,
    Columns,
    camera_images,
    every_nth,
    frame_images,
    held_out_frames,
    task_tokens,
    training_frames,
)
from object_errors import report_errors
from places import PlacesHead, encode_with_graph
from resumable import ResumableTraining
from teach_vision import object_loss, object_targets
from torch import Tensor, nn
from torch.nn import functional

from zk0.policy.smolvla.action_expert import flow_matching_losses
from zk0.policy.smolvla.prefix import Prefix, embed_frames
from zk0.records import CAMERA_PREFIX, Moments, Statistics

DRAWS = 4
"""Draws of noise and time for each frame."""
STATE_NOISE = 0.03
"""Standard deviation of the noise on the normalized state."""
RANDOM_COLORS = 0.25
"""Share of a batch whose colors `scripts/base/random_scenes.py` has drawn."""
PLACES = 0.5
"""Weight of the loss of the places."""


def teach_actions(
    policy: Any,
    columns: Columns,
    statistics: Statistics,
    steps: int,
    rate: float,
    batch: int,
    work: Path,
    seed: int,
) -> None:
    """Train everything but vision encoder and connector."""
    width, joints = policy.config.max_action_dim, columns["state"].shape[1]
    device = policy.model.state_proj.weight.device
    tokens, mask = (part.to(device) for part in task_tokens(policy, columns["task"]))
    _, targets, unit = (part.to(device) for part in object_targets(columns))
    states = _normalize(columns["state"], statistics.state, width).to(device)
    actions = _normalize(columns["chunk"], statistics.action, width).to(device)
    padding = (torch.arange(actions.shape[1])[None] >= torch.from_numpy(columns["n"])[:, None]).to(device)
    frames, features = training_frames(columns), _embed(policy, columns)
    acts, drawn = (torch.from_numpy(columns[name])[frames] > 0 for name in ("n", "random"))
    pools = (frames[acts & ~drawn], frames[acts & drawn], frames[drawn])
    random_colors = round(RANDOM_COLORS * batch)
    counts = (batch - random_colors, random_colors, batch // 2)
    policy.requires_grad_(False)
    for name, weight in policy.named_parameters():
        weight.requires_grad_(".vlm." not in name or "text_model.layers" in name or "embed_tokens" in name)
    torch.manual_seed(seed)  # so that this part does not depend on the number of steps of part 1
    head = PlacesHead(policy).to(device)
    training = ResumableTraining(
        nn.ModuleList([policy, head]),
        work / "actions.pt",
        {"frames": len(frames), "steps": steps, "rate": rate, "batch": batch, "seed": seed},
        rate,
        steps,
        betas=(0.9, 0.98),
        warmup=0.05,
    )

    def losses_of(chosen: Tensor, acting: int) -> tuple[Tensor, Tensor]:
        """Flow loss of the first `acting` frames, and loss of the places of all."""
        prefix = encode_with_graph(policy, features[chosen], tokens[chosen], mask[chosen])
        i, places = chosen[:acting], object_loss(head(prefix), targets[chosen])
        own = Prefix([(keys[:acting], values[:acting]) for keys, values in prefix.layers], prefix.mask[:acting])
        state = states[i] + (STATE_NOISE * torch.randn(acting, width)).to(device)
        noise = torch.randn(acting, DRAWS, *actions.shape[1:]).to(device)
        time = (torch.rand(acting, DRAWS).pow(1 / 1.5) * 0.999 + 0.001).to(device)
        losses = flow_matching_losses(policy, own, state, actions[i], noise, time)[..., :joints].mean((1, 3))
        return losses[~padding[i]].mean(), places

    def loss_of_batch() -> Tensor:
        chosen = [pool[torch.randint(0, len(pool), (count,))] for pool, count in zip(pools, counts, strict=True)]
        flow, places = losses_of(torch.cat(chosen).to(device), batch)
        return flow + PLACES * places

    training.run(loss_of_batch)
    with torch.no_grad():
        for what, some in (("training scenes", pools[0]), ("held-out scenes", held_out_frames(columns))):
            parts = every_nth(some, 2000).to(device).split(200)
            flow = torch.stack([losses_of(part, len(part))[0] for part in parts]).mean()
            sys.stdout.write(f"{what}: flow-matching loss {flow:.4f}\n")
            found = [head(encode_with_graph(policy, features[i], tokens[i], mask[i])) for i in parts]
            report_errors(f"{what}, task", torch.cat(found), targets[torch.cat(parts)], unit)


def _embed(policy: Any, columns: Columns) -> Tensor:
    stored = camera_images(columns, policy.model.state_proj.weight.device)

    def images(at: slice) -> dict[str, Tensor]:
        return {f"{CAMERA_PREFIX}{c}": frame_images(stored[c], at) for c in CAMERAS}

    return torch.cat([embed_frames(policy, images(slice(k, k + 128))) for k in range(0, len(columns["n"]), 128)])


def _normalize(values: np.ndarray, moments: Moments, width: int) -> Tensor:
    normalized = (values - np.asarray(moments.mean)) / np.asarray(moments.std)
    return functional.pad(torch.tensor(normalized, dtype=torch.float32), (0, width - values.shape[-1]))
