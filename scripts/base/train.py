"""Train the policy `base` on frames of `scripts/base/record_attempts.py`, all of it at once.

    python scripts/base/train.py attempts --encoder base --steps 9000 --work work --out FOLDER

It learns the actions of the scripted expert by SmolVLA's flow matching, and where the objects lie that a task names
(`scripts/base/places.py`). Frames that are recorded meanwhile are read every 250 steps. Every 500 steps, the policy
with averaged weights is saved in `--work`, and `--work/newest` names it, so that its own attempts can be recorded. The
command can be stopped at any time; started again with the same arguments, it continues from the state in `--work`,
which is at most two minutes old.
"""

import argparse
import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from places import PlacesHead, encode_with_graph, object_errors, object_loss
from recorded_frames import RecordedFrames
from resumable import ResumableTraining
from torch import Tensor, nn

from zk0.policy.save_policy import save_policy
from zk0.policy.saved_policy import load_saved_policy
from zk0.policy.smolvla.action_expert import flow_matching_losses
from zk0.policy.smolvla.prefix import embed_frames
from zk0.policy.smolvla.tiny_geometry import IMAGE_SIDE, tiny_config, write_tiny_vlm
from zk0.records import ACTION, CAMERA_PREFIX, STATE, Statistics
from zk0.settings.evaluation_settings import RolloutSettings
from zk0.storage.atomic import atomic_path

VISION = {"patch_size": 12, "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3}
"""Geometry of the vision encoder; what is not here or in LANGUAGE is that of `tiny`."""
LANGUAGE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
}
"""Geometry of the language model. The action expert has the same width."""
DRAWS = 3
"""Draws of noise and time for each frame."""
STATE_NOISE = 0.03
"""Standard deviation of the noise on the normalized state."""
PLACES = 0.5
"""Weight of the loss of the places."""
NEW_FRAMES_STEPS, SAVED_STEPS, WARMUP_STEPS = 250, 500, 300


def build_policy(cache: Path) -> Any:
    """A SmolVLA with random weights in the geometry of `base`."""
    from lerobot.configs import FeatureType, PolicyFeature

    from lerobot_policy_smolvla_bundled import BundledSmolVLAConfig, BundledSmolVLAPolicy, read_vlm_files

    vlm = Path(shutil.copytree(write_tiny_vlm(cache), cache / "base-vlm", dirs_exist_ok=True))
    _update_json(vlm / "config.json", "vision_config", VISION)
    _update_json(vlm / "config.json", "text_config", LANGUAGE)
    _update_json(vlm / "processor_config.json", None, {"image_seq_len": (IMAGE_SIDE // VISION["patch_size"] // 4) ** 2})
    image = PolicyFeature(FeatureType.VISUAL, (3, IMAGE_SIDE, IMAGE_SIDE))
    settings = BundledSmolVLAConfig(
        device="cpu",
        vlm_files=read_vlm_files(vlm),
        input_features={
            STATE: PolicyFeature(FeatureType.STATE, (6,)),
            f"{CAMERA_PREFIX}overhead": image,
            f"{CAMERA_PREFIX}wrist": image,
        },
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (6,))},
        **tiny_config() | {"expert_width_multiplier": 1.0},
    )
    return BundledSmolVLAPolicy(settings).float()


def _update_json(file: Path, part: str | None, values: dict[str, int]) -> None:
    config = json.loads(file.read_text(encoding="utf-8"))
    (config[part] if part else config).update(values)
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")


def copy_encoder(policy: Any, other: Any) -> None:
    """Give the policy the vision encoder of another one."""
    own, given = (p.model.vlm_with_expert.get_vlm_model().vision_model for p in (policy, other))
    own.load_state_dict(given.state_dict())


def batch_losses(
    policy: Any, head: PlacesHead, frames: RecordedFrames, chosen: Tensor, augment: bool
) -> tuple[Tensor, Tensor]:
    """Loss of the actions of these frames; predicted places (frames, OBJECTS, cameras, TARGETS)."""
    images = frames.images(chosen)
    if augment:
        images = {key: _other_light(image) for key, image in images.items()}
    with torch.autocast("cpu", torch.bfloat16):
        features = embed_frames.__wrapped__(policy, images)
        prefix = encode_with_graph(policy, features.float(), frames.tokens[chosen], frames.mask[chosen])
        places = head(prefix).float()
        states, actions = frames.states[chosen], frames.actions[chosen]
        states = states + STATE_NOISE * torch.randn(states.shape) if augment else states
        noise = torch.randn(len(chosen), DRAWS, *actions.shape[1:])
        time = torch.rand(len(chosen), DRAWS).pow(1 / 1.5) * 0.999 + 0.001
        losses = flow_matching_losses(policy, prefix, states, actions, noise, time)[
            ..., : len(frames.statistics.state.mean)
        ]
    return losses.float().mean(), places


def _other_light(image: Tensor) -> Tensor:
    """Other brightness and color of the light in each image."""
    count = len(image)
    gain = 1 + 0.12 * torch.randn(count, 1, 1, 1)
    color, offset = 1 + 0.05 * torch.randn(count, 3, 1, 1), 0.03 * torch.randn(count, 1, 1, 1)
    return (image * gain * color + offset).clamp(0, 1)


@torch.no_grad()
def report_held_out(policy: Any, head: PlacesHead, frames: RecordedFrames) -> None:
    """Print the losses of held-out frames, and how well their places are known."""
    random = torch.get_rng_state()
    torch.manual_seed(1)
    chosen = frames.held_out[torch.randperm(len(frames.held_out))[:1000]]
    found = [batch_losses(policy, head, frames, part, augment=False) for part in chosen.split(200)]
    torch.set_rng_state(random)
    loss = float(torch.stack([loss for loss, _ in found]).mean())
    places = object_errors(torch.cat([places for _, places in found]), frames.targets[chosen])
    told = "; ".join(f"{name} {error:.1f} mm" for name, error in places.items())
    sys.stdout.write(f"held out, averaged weights: loss of the actions {loss:.4f}; median errors: {told}\n")


def save_newest(policy: Any, head: PlacesHead, frames: RecordedFrames, training: ResumableTraining, work: Path) -> None:
    """Save the averaged policy as `policy-STEP`, and name it in `newest`."""
    with training.averaged_weights():
        report_held_out(policy, head, frames)
        folder = work / f"policy-{training.step}"
        shutil.rmtree(folder, ignore_errors=True)
        save_policy(policy, frames.statistics, folder, executed_steps=RolloutSettings().replan_steps)
    with atomic_path(work / "newest") as temporary:
        temporary.write_text(str(folder), encoding="utf-8")


def main() -> None:
    """Train the policy and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attempts", type=Path, help="folder of scripts/base/record_attempts.py")
    parser.add_argument("--encoder", help="a policy, or base: begin with its vision encoder")
    parser.add_argument("--start", help="a policy, or base: continue its training")
    parser.add_argument("--steps", type=int, required=True, help="optimizer steps")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--vision-rate", type=float, default=3e-4, help="highest learning rate of the vision encoder")
    parser.add_argument("--batch", type=int, default=48, help="frames of a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="state of the training, and policies on the way")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    arguments.work.mkdir(parents=True, exist_ok=True)
    train(arguments)


def train(arguments: argparse.Namespace) -> None:
    """Make all steps and save the policy."""
    work, kept = arguments.work, arguments.work / "statistics.json"
    start = load_saved_policy(arguments.start) if arguments.start else None
    policy = start.policy if start else build_policy(work)
    if arguments.encoder:
        copy_encoder(policy, load_saved_policy(arguments.encoder).policy)
    policy.eval()
    statistics = Statistics.model_validate_json(kept.read_bytes()) if kept.is_file() else start and start.statistics
    frames = RecordedFrames(arguments.attempts, policy, statistics)
    kept.write_text(frames.statistics.model_dump_json(), encoding="utf-8")
    head = PlacesHead(policy)
    policy.requires_grad_(True)
    encoder = [w for n, w in policy.named_parameters() if "vision_model" in n]
    others = [w for n, w in policy.named_parameters() if "vision_model" not in n and "lm_head" not in n]
    conditions = {k: getattr(arguments, k) for k in ("steps", "rate", "vision_rate", "batch", "seed")}
    training = ResumableTraining(
        nn.ModuleList([policy, head]),
        work / "state.pt",
        conditions,
        [([*others, *head.parameters()], arguments.rate), (encoder, arguments.vision_rate)],
        arguments.steps,
        WARMUP_STEPS,
    )

    def losses_of_batch() -> Tensor:
        if training.step % NEW_FRAMES_STEPS == 0:
            frames.read_new()
        chosen = frames.training[torch.randint(0, len(frames.training), (arguments.batch,))]
        loss, places = batch_losses(policy, head, frames, chosen, augment=True)
        return torch.stack([loss, PLACES * object_loss(places, frames.targets[chosen])])

    training.run(losses_of_batch, SAVED_STEPS, partial(save_newest, policy, head, frames, training, work))
    with training.averaged_weights():
        save_policy(policy, frames.statistics, arguments.out, executed_steps=RolloutSettings().replan_steps)


if __name__ == "__main__":
    main()
