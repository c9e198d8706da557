"""Train the policy `base`: first its vision encoder, then its language model and action expert.

    python scripts/base/train.py recordings --scenes scenes --work work --out FOLDER
    python scripts/base/train.py recordings --scenes scenes --start base --work work --out FOLDER

1. `scripts/base/teach_vision.py`: vision encoder and connector learn where the object of each color lies. With
   `--start` they are those of another policy, and this part is left out.
2. `scripts/base/teach_actions.py`: they are frozen; the rest learns the actions of the scripted expert, and where the
   objects lie that a task names.

`scripts/base/record.py` records frames, `scripts/base/random_scenes.py` renders others without physics. The command can
be stopped at any time; started again with the same arguments, it continues from the state in `--work`, which is at most
two minutes old.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from base_columns import join_columns, measure_frames, read_recordings, recorded_files
from teach_actions import teach_actions
from teach_vision import teach_vision

from zk0.policy.save_policy import save_policy
from zk0.policy.saved_policy import load_saved_policy
from zk0.policy.smolvla.tiny_geometry import IMAGE_SIDE, tiny_config, write_tiny_vlm
from zk0.records import ACTION, CAMERA_PREFIX, STATE
from zk0.settings.evaluation_settings import RolloutSettings

VISION = {"patch_size": 12, "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3}
"""Geometry of the vision encoder; everything else of the vision-language model is that of `tiny`."""
EXPERT_WIDTH = 1.5
"""Width of the action expert as a multiple of the language model's: 96."""


def build_policy(cache: Path) -> Any:
    """A SmolVLA with random weights in the geometry of `base`."""
    from lerobot.configs import FeatureType, PolicyFeature

    from lerobot_policy_smolvla_bundled import BundledSmolVLAConfig, BundledSmolVLAPolicy, read_vlm_files

    vlm = Path(shutil.copytree(write_tiny_vlm(cache), cache / "base-vlm", dirs_exist_ok=True))
    _update_json(vlm / "config.json", "vision_config", VISION)
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
        **tiny_config() | {"expert_width_multiplier": EXPERT_WIDTH},
    )
    return BundledSmolVLAPolicy(settings).float()


def _update_json(file: Path, part: str | None, values: dict[str, int]) -> None:
    config = json.loads(file.read_text(encoding="utf-8"))
    (config[part] if part else config).update(values)
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _device(chosen: str) -> torch.device:
    """The device to train on; on a GPU, matrix products may use TF32."""
    device = torch.device("cuda" if chosen == "cuda" or (chosen == "auto" and torch.cuda.is_available()) else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    return device


def main() -> None:
    """Train the policy and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path, help="folder of scripts/base/record.py")
    parser.add_argument("--scenes", type=Path, required=True, help="folder of scripts/base/random_scenes.py")
    parser.add_argument("--rounds", type=int, help="use the first files of each task only")
    parser.add_argument("--start", help="a policy, or base: continue its training with part 2, without part 1")
    parser.add_argument("--vision-steps", type=int, default=6000, help="optimizer steps of part 1")
    parser.add_argument("--action-steps", type=int, default=8000, help="optimizer steps of part 2")
    parser.add_argument("--vision-rate", type=float, default=1.5e-3, help="highest learning rate of part 1")
    parser.add_argument("--action-rate", type=float, default=2e-3, help="highest learning rate of part 2")
    parser.add_argument("--vision-batch", type=int, default=48, help="frames of a step of part 1")
    parser.add_argument("--action-batch", type=int, default=32, help="frames of a step of part 2")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="state of the training")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recorded = read_recordings(recorded_files(arguments.recordings, rounds=arguments.rounds))
    statistics = measure_frames(recorded)
    torch.manual_seed(arguments.seed)
    start = arguments.start and load_saved_policy(arguments.start).policy
    policy = (start or build_policy(arguments.work)).to(_device(arguments.device))
    policy.eval()
    if start is None:
        vision = (arguments.vision_steps, arguments.vision_rate, arguments.vision_batch)
        teach_vision(policy, recorded, *vision, arguments.work)
    columns = join_columns(recorded, read_recordings(sorted(arguments.scenes.glob("*-random-*.npz"))))
    action = (arguments.action_steps, arguments.action_rate, arguments.action_batch)
    teach_actions(policy, columns, statistics, *action, arguments.work, arguments.seed)
    policy.cpu()
    save_policy(policy, statistics, arguments.out, executed_steps=RolloutSettings().replan_steps)


if __name__ == "__main__":
    main()
