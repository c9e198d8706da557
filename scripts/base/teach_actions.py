"""Part 2 of the base policy: language model, action expert and projections learn the actions of the scripted expert.

They learn by SmolVLA's flow matching, from the cached output of the frozen vision encoder and connector.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from base_columns import CAMERAS, Columns, camera_images, frame_images, training_frames
from resumable import ResumableTraining
from torch import Tensor, nn
from torch.nn import functional

from zk0.policy.smolvla.action_expert import flow_matching_losses
from zk0.policy.smolvla.prefix import Prefix, embed_frames, encode_prefix
from zk0.records import CAMERA_PREFIX, Moments, Statistics
from zk0.simulator.tasks import find_task

DRAWS = 4
"""Draws of noise and time for each frame."""
STATE_NOISE = 0.03
"""Standard deviation of the noise on the normalized state."""


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
    tokens, mask = _tokenize(policy, columns["task"])
    lengths, tokens, mask = mask.sum(1), tokens.to(device), mask.to(device)
    states = _normalize(columns["state"], statistics.state, width).to(device)
    actions = _normalize(columns["chunk"], statistics.action, width).to(device)
    padding = (torch.arange(actions.shape[1])[None] >= torch.from_numpy(columns["n"])[:, None]).to(device)
    frames, features = training_frames(columns), _embed(policy, columns)
    policy.requires_grad_(False)
    for name, weight in policy.named_parameters():
        weight.requires_grad_(".vlm." not in name or "text_model.layers" in name or "embed_tokens" in name)
    torch.manual_seed(seed)  # so that this part does not depend on the number of steps of part 1
    training = ResumableTraining(
        nn.ModuleList([policy]),
        work / "actions.pt",
        {"frames": len(frames), "steps": steps, "rate": rate, "batch": batch, "seed": seed},
        rate,
        steps,
        betas=(0.9, 0.98),
        warmup=0.05,
    )

    def loss_of_batch() -> Tensor:
        chosen = frames[torch.randint(0, len(frames), (batch,))]
        longest, i = int(lengths[chosen].max()), chosen.to(device)
        prefix = encode_prefix.__wrapped__(policy, features[i], tokens[i, :longest], mask[i, :longest])  # with a graph
        repeated = Prefix([(_repeat(k), _repeat(v)) for k, v in prefix.layers], _repeat(prefix.mask))
        state = states[i] + (STATE_NOISE * torch.randn(batch, width)).to(device)
        noise = torch.randn(batch * DRAWS, *actions.shape[1:]).to(device)
        time = (torch.rand(batch * DRAWS).pow(1 / 1.5) * 0.999 + 0.001).to(device)
        losses = flow_matching_losses(policy, repeated, _repeat(state), _repeat(actions[i]), noise, time)
        valid = ~_repeat(padding[i])
        return (losses[:, :, :joints] * valid[:, :, None]).sum() / (valid.sum() * joints)

    training.run(loss_of_batch)


def _tokenize(policy: Any, tasks: np.ndarray) -> tuple[Tensor, Tensor]:
    names, row = np.unique(tasks, return_inverse=True)
    tokenizer = policy.model.vlm_with_expert.processor.tokenizer
    texts = [f"{find_task(str(name)).text}\n" for name in names]
    found = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    return found["input_ids"][row], found["attention_mask"].bool()[row]


def _embed(policy: Any, columns: Columns) -> Tensor:
    stored = camera_images(columns, policy.model.state_proj.weight.device)

    def images(at: slice) -> dict[str, Tensor]:
        return {f"{CAMERA_PREFIX}{c}": frame_images(stored[c], at) for c in CAMERAS}

    return torch.cat([embed_frames(policy, images(slice(k, k + 128))) for k in range(0, len(columns["n"]), 128)])


def _repeat(values: Tensor) -> Tensor:
    return values.repeat_interleave(DRAWS, 0)


def _normalize(values: np.ndarray, moments: Moments, width: int) -> Tensor:
    normalized = (values - np.asarray(moments.mean)) / np.asarray(moments.std)
    return functional.pad(torch.tensor(normalized, dtype=torch.float32), (0, width - values.shape[-1]))
