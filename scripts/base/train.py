"""The base policy, from recorded frames: first its eyes, then its hand.

    python scripts/base/train.py lift-green.npz lift-blue.npz lift-purple.npz --out zk0/robot/base_policy

1. Vision encoder and connector learn where things are: the mean of an image's tokens must tell, by one linear map that
   is thrown away afterwards, where cube and disc lie (for the wrist camera seen from the gripper) and how the cube is
   turned.
2. They are frozen. Language model, action expert and projections learn the expert's actions by SmolVLA's flow matching.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from zk0.records import ACTION, CAMERA_PREFIX, STATE, Moments, Statistics
from zk0.robot.policy import save_policy
from zk0.robot.prefix import Prefix, embed_frames, encode_prefix, flow_matching_losses
from zk0.robot.tiny import IMAGE_SIDE, tiny_config, write_tiny_vlm

PATCH = 12
HELD_OUT = 10
"""Every tenth episode of a recording is not trained on."""
EXPERT_WIDTH = 1.5
"""Of the language model's width: 96."""
Columns = dict[str, np.ndarray]


def build(cache: Path) -> Any:
    """A SmolVLA of random weights in the base's geometry: that of `tiny`, patches of 12 px, a wider expert."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    vlm = Path(shutil.copytree(write_tiny_vlm(cache), cache / "base-vlm", dirs_exist_ok=True))
    _set(vlm / "config.json", "vision_config", {"patch_size": PATCH})
    _set(vlm / "processor_config.json", None, {"image_seq_len": (IMAGE_SIDE // PATCH // 4) ** 2})
    image = PolicyFeature(FeatureType.VISUAL, (3, IMAGE_SIDE, IMAGE_SIDE))
    settings = SmolVLAConfig(
        device="cpu",
        vlm_model_name=str(vlm),
        input_features={
            STATE: PolicyFeature(FeatureType.STATE, (6,)),
            f"{CAMERA_PREFIX}overhead": image,
            f"{CAMERA_PREFIX}wrist": image,
        },
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (6,))},
        **tiny_config() | {"expert_width_multiplier": EXPERT_WIDTH},
    )
    return SmolVLAPolicy(settings).float()


def _set(file: Path, part: str | None, values: dict[str, int]) -> None:
    config = json.loads(file.read_text(encoding="utf-8"))
    (config[part] if part else config).update(values)
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")


def read(files: Sequence[Path]) -> Columns:
    """Columns of all recordings; `text` by frame."""
    parts = [dict(np.load(file)) for file in files]
    names = parts[0].keys() - {"text"}
    columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
    columns["text"] = np.concatenate([np.full(len(part["n"]), str(part["text"])) for part in parts])
    return columns


def whereabouts(columns: Columns) -> tuple[Tensor, Tensor]:
    """What the tokens of the overhead and of the wrist camera must tell, standardised; NaN where there is no disc."""
    rotation, site = columns["rot"], columns["site"]
    gripper_yaw = np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0])

    def turned(yaw: np.ndarray) -> np.ndarray:  # a cube looks the same after a quarter turn
        return np.stack([np.cos(4 * yaw), np.sin(4 * yaw)], 1)

    def from_gripper(place: np.ndarray) -> np.ndarray:
        return np.einsum("nji,nj->ni", rotation, place - site)

    cube, goal, yaw = columns["cube"], columns["goal"], columns["cube_yaw"]
    overhead = np.concatenate([cube, turned(yaw), goal[:, :2]], 1)
    wrist = np.concatenate([from_gripper(cube), turned(yaw - gripper_yaw), from_gripper(goal)], 1)
    return _standard(overhead), _standard(wrist)


def _standard(values: np.ndarray) -> Tensor:
    known = np.isfinite(values).any(0)
    mean, std = np.zeros(values.shape[1]), np.ones(values.shape[1])
    mean[known], std[known] = np.nanmean(values[:, known], 0), np.nanstd(values[:, known], 0) + 1e-6
    mean[3:5], std[3:5] = 0, 0.7
    return torch.tensor((values - mean) / std, dtype=torch.float32)


def see(policy: Any, columns: Columns, steps: int, batch: int = 48, rate: float = 1.5e-3) -> None:
    """Train vision encoder and connector; half of the images get their colour channels in another order."""
    vlm = policy.model.vlm_with_expert
    model = vlm.get_vlm_model()
    overhead, wrist = whereabouts(columns)
    seen = _trained_on(columns)
    width = vlm.config.text_config.hidden_size
    heads = nn.ModuleList([nn.Linear(width, overhead.shape[1]), nn.Linear(width, wrist.shape[1])])
    policy.requires_grad_(False)
    weights = [*model.vision_model.parameters(), *model.connector.parameters(), *heads.parameters()]
    for weight in weights:
        weight.requires_grad_(True)
    descent = Descent(weights, rate, steps, betas=(0.9, 0.999), warm=0.1)
    for _ in range(steps):
        chosen = seen[torch.randint(0, len(seen), (batch,))]
        order = torch.argsort(torch.rand(batch, 3), 1)
        order[torch.rand(batch) < 0.5] = torch.arange(3)
        order = order[:, :, None, None].expand(-1, -1, IMAGE_SIDE, IMAGE_SIDE)
        images = torch.cat([_images(columns[c], chosen.numpy()).gather(1, order) for c in ("overhead", "wrist")])
        tokens = vlm.embed_image(images * 2 - 1).mean(1)
        loss = _error(heads[0](tokens[:batch]), overhead[chosen]) + _error(heads[1](tokens[batch:]), wrist[chosen])
        descent.step(loss)
    policy.requires_grad_(False)


def _trained_on(columns: Columns) -> Tensor:
    return torch.from_numpy(np.flatnonzero(columns["episode"] % HELD_OUT != HELD_OUT - 1))


def _error(told: Tensor, wanted: Tensor) -> Tensor:
    known = ~torch.isnan(wanted)
    return functional.smooth_l1_loss(told[known], wanted[known], beta=0.3)


def _images(stored: np.ndarray, chosen: Any) -> Tensor:
    return torch.from_numpy(stored[chosen]).permute(0, 3, 1, 2).float() / 255


class Descent:
    """AdamW under a one-cycle schedule; tells the mean loss ten times."""

    def __init__(
        self, weights: Sequence[Tensor], rate: float, steps: int, betas: tuple[float, float], warm: float
    ) -> None:
        self.weights, self.steps, self.losses = list(weights), steps, []
        self._optimizer = torch.optim.AdamW(self.weights, rate, betas=betas, weight_decay=1e-4)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimizer, rate, steps, pct_start=warm)

    def step(self, loss: Tensor) -> None:
        """One step down this loss."""
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self._optimizer.step()
        self._schedule.step()
        self.losses.append(loss.item())
        tenth = max(1, self.steps // 10)
        if len(self.losses) % tenth == 0:
            mean = np.mean(self.losses[-tenth:])
            sys.stdout.write(f"step {len(self.losses)} of {self.steps}: loss {mean:.4f}\n")
            sys.stdout.flush()


def imitate(policy: Any, columns: Columns, statistics: Statistics, steps: int) -> None:
    """Train language model, action expert and projections; four draws of noise and time for each frame."""
    batch, draws, width = 32, 4, policy.config.max_action_dim
    tokenizer = policy.model.vlm_with_expert.processor.tokenizer
    words = tokenizer([f"{t}\n" for t in columns["text"]], padding=True, padding_side="right", return_tensors="pt")
    tokens, mask = words["input_ids"], words["attention_mask"].bool()
    states = _normal(columns["state"], statistics.state, width)
    actions = _normal(columns["chunk"], statistics.action, width)
    padding = torch.arange(actions.shape[1])[None] >= torch.from_numpy(columns["n"])[:, None]
    seen, frames = _trained_on(columns), range(0, len(states), 128)
    kept = torch.cat([embed_frames(policy, _seen(columns, slice(k, k + 128))) for k in frames])
    for name, weight in policy.named_parameters():
        weight.requires_grad_(".vlm." not in name or "text_model.layers" in name or "embed_tokens" in name)
    descent = Descent([p for p in policy.parameters() if p.requires_grad], 2e-3, steps, betas=(0.9, 0.98), warm=0.05)
    for _ in range(steps):
        i = seen[torch.randint(0, len(seen), (batch,))]
        prefix = encode_prefix.__wrapped__(policy, kept[i], tokens[i], mask[i])  # with a graph
        many = Prefix([(_times(k, draws), _times(v, draws)) for k, v in prefix.layers], _times(prefix.mask, draws))
        state = states[i] + 0.03 * torch.randn(batch, width)
        noise = torch.randn(batch * draws, *actions.shape[1:])
        time = torch.rand(batch * draws).pow(1 / 1.5) * 0.999 + 0.001
        losses = flow_matching_losses(policy, many, _times(state, draws), _times(actions[i], draws), noise, time)
        real = ~_times(padding[i], draws)
        descent.step((losses[:, :, :6] * real[:, :, None]).sum() / (real.sum() * 6))


def _times(values: Tensor, count: int) -> Tensor:
    return values.repeat_interleave(count, 0)


def _seen(columns: Columns, at: slice) -> dict[str, Tensor]:
    return {f"{CAMERA_PREFIX}{c}": _images(columns[c], at) for c in ("overhead", "wrist")}


def _normal(values: np.ndarray, moments: Moments, width: int) -> Tensor:
    normal = (values - np.asarray(moments.mean)) / np.asarray(moments.std)
    return functional.pad(torch.tensor(normal, dtype=torch.float32), (0, width - values.shape[-1]))


def measure(columns: Columns) -> Statistics:
    """Moments of the states, and of the first action of each frame's chunk."""

    def moments(values: np.ndarray) -> Moments:
        found = {name: tuple(getattr(values, name)(0).astype(float).tolist()) for name in ("mean", "std", "min", "max")}
        return Moments(count=len(values), **found)

    return Statistics(state=moments(columns["state"]), action=moments(columns["chunk"][:, 0]))


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recordings", type=Path, nargs="+")
    parser.add_argument("--see-steps", type=int, default=900)
    parser.add_argument("--imitate-steps", type=int, default=1100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    columns = read(given.recordings)
    statistics = measure(columns)
    with tempfile.TemporaryDirectory() as cache:
        torch.manual_seed(given.seed)
        policy = build(Path(cache))
        policy.eval()
        built = torch.get_rng_state()
        see(policy, columns, given.see_steps)
        torch.set_rng_state(built)  # so that either part can be made anew with the other as it was
        imitate(policy, columns, statistics, given.imitate_steps)
        save_policy(policy, statistics, given.out)


if __name__ == "__main__":
    main()
