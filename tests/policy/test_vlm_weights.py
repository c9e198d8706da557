"""A policy that asks for the language model's own weights is built without them, with the same tensors and types."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from zk0.policy.trainable import frozen_digest, trainable_weights
from zk0.records import Moments, PolicyRecipe, Statistics

MOMENTS = Moments(count=9, mean=(1.0,) * 6, std=(2.0,) * 6, min=(-5.0,) * 6, max=(5.0,) * 6)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny vision-language model with weights in bf16, as SmolVLM2's folder."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    from zk0.policy.smolvla.tiny_geometry import write_tiny_vlm

    folder = Path(
        shutil.copytree(write_tiny_vlm(tmp_path_factory.mktemp("cache")), tmp_path_factory.mktemp("v") / "vlm")
    )
    AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder)).to(torch.bfloat16).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def base(request: pytest.FixtureRequest, vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that LeRobot saved with `load_vlm_weights`; its file is in bf16, or in float32."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
    from safetensors.torch import load_file, save_file

    from zk0.policy.smolvla.tiny_geometry import tiny_config

    folder, images = tmp_path_factory.mktemp(request.param), PolicyFeature(FeatureType.VISUAL, (3, 256, 256))
    settings = tiny_config() | {"load_vlm_weights": True, "device": "cpu", "vlm_model_name": str(vlm)}
    SmolVLAPolicy(SmolVLAConfig(input_features={"observation.images.wrist": images}, **settings)).save_pretrained(
        folder
    )
    torch.manual_seed(3)
    state = {n: torch.randn(t.shape).to(getattr(torch, request.param)) if t.is_floating_point() else t
             for n, t in load_file(folder / "model.safetensors").items()}  # fmt: skip
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def built(path: Path) -> Any:
    from zk0.policy.build import build_policy

    return build_policy(PolicyRecipe(path=str(path), cameras=("wrist",), joints=6, seed=1), path)


def test_tensors_and_types_are_those_of_lerobot(base: Path, vlm: Path) -> None:
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    reference = SmolVLAPolicy.from_pretrained(base)
    weights = vlm / "model.safetensors"
    weights.rename(vlm / "away")
    try:
        policy = built(base)
    finally:
        (vlm / "away").rename(weights)
    assert frozen_digest(policy) == frozen_digest(reference)
    found, expected = trainable_weights(policy), dict(reference.named_parameters())
    assert all((value == expected[name].detach().float().numpy()).all() for name, value in found.items())
    frozen = {n: (t.dtype, t.shape) for n, t in policy.state_dict().items() if n not in found}
    assert frozen == {n: (t.dtype, t.shape) for n, t in reference.state_dict().items() if n not in found}


def test_a_saved_copy_does_not_ask_for_them_and_is_built_with_the_same_bits(base: Path, tmp_path: Path) -> None:
    from zk0.policy.save_policy import save_policy

    policy = built(base)
    trainable_weights(policy)["model.state_proj.weight"] *= 1.001  # no longer a value of bf16
    save_policy(policy, Statistics(state=MOMENTS, action=MOMENTS), tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["load_vlm_weights"] is False
    again = built(tmp_path / "saved")
    assert frozen_digest(again) == frozen_digest(policy)
    pairs = zip(trainable_weights(again).values(), trainable_weights(policy).values(), strict=True)
    assert all((a == b).all() for a, b in pairs)
