"""A saved LeRobot policy as anyone would use it: its weights, its own processors, its own statistics."""

import hashlib
import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zk0.errors import PolicyError
from zk0.robot.policy import VLM_FOLDER, read_config, read_policy, resolved, weights_file


@dataclass(frozen=True)
class SavedPolicy:
    """A policy with the processors that were saved beside it."""

    policy: Any
    preprocessor: Any
    postprocessor: Any
    digest: str
    """SHA-256 of model.safetensors."""
    cameras: tuple[str, ...]
    """Feature keys of its images."""


def load_saved(path: str, device: str = "cpu") -> SavedPolicy:
    """A SmolVLA policy folder of lerobot, a name on the Hub, or `base`.

    Raises:
        PolicyError: it or its processors cannot be loaded, it is not for six joints, or it would not unnormalise.
    """
    path = resolved(path)
    with redirect_stdout(io.StringIO()):  # lerobot prints its progress
        config = read_config(path)
        policy = read_policy(path, config)
    joints = config.action_feature.shape[0] if config.action_feature else 0
    if joints != config.robot_state_feature.shape[0] or not config.image_features:
        raise PolicyError(f"{path}: {joints} actions for {config.robot_state_feature.shape[0]} joints; expected equal")
    policy.config.device = device
    policy.to(device).eval()
    with weights_file(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return SavedPolicy(policy, *_processors(path, config, device), digest, tuple(config.image_features))


def _processors(path: str, config: Any, device: str) -> tuple[Any, Any]:
    from lerobot.policies.factory import make_pre_post_processors

    overrides: dict[str, Any] = {"device_processor": {"device": device}}
    if (Path(path) / VLM_FOLDER).is_dir():
        overrides["tokenizer_processor"] = {"tokenizer_name": config.vlm_model_name}
    try:
        pre, post = make_pre_post_processors(config, path, preprocessor_overrides=overrides)
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        raise PolicyError(
            f"{path}: its processors cannot be loaded ({type(e).__name__}: {str(e).strip().splitlines()[0]}); "
            "expected policy_preprocessor.json and policy_postprocessor.json beside the weights"
        ) from e
    ones = torch.ones(1, config.action_feature.shape[0])
    if torch.equal(post(ones.to(device)).cpu(), ones):
        raise PolicyError(
            f"{path}: its postprocessor leaves actions as they are (lerobot issue 4415): statistics of the action are "
            "missing, or stand under another name; the arm would get normalised numbers for degrees"
        )
    return pre, post
