"""Load a saved LeRobot policy for closed-loop rollouts, with the processors and statistics saved beside it."""

import hashlib
import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zk0.errors import PolicyError, first_line
from zk0.hub_outages import HUB_ERRORS, hub_outage
from zk0.policy.kinds import kind_of_type
from zk0.policy.load_files import locate_weights, read_policy_config
from zk0.policy.published_config import resolve_policy_path


@dataclass(frozen=True)
class SavedPolicy:
    """A policy with the processors that were saved beside it."""

    policy: Any
    preprocessor: Any
    postprocessor: Any
    digest: str
    """SHA-256 of model.safetensors."""
    cameras: tuple[str, ...]
    """Feature keys of the images that the policy takes."""


def load_saved_policy(path: str, device: str = "cpu") -> SavedPolicy:
    """Load a policy in evaluation mode.

    Args:
        path: a policy folder that LeRobot saved, a name on the Hub, or `base`.
        device: `cpu` or `cuda`.

    Raises:
        PolicyError: the policy or its processors cannot be loaded, it has no camera or not one action for each joint,
            or its postprocessor does not unnormalize.
    """
    path = resolve_policy_path(path)
    with redirect_stdout(io.StringIO()):  # LeRobot prints its progress
        config = read_policy_config(path)
        policy = kind_of_type(config.type).load(path, config)
    joints = config.action_feature.shape[0] if config.action_feature else 0
    if joints != config.robot_state_feature.shape[0] or not config.image_features:
        raise PolicyError(f"{path}: {joints} actions for {config.robot_state_feature.shape[0]} joints; expected equal")
    policy.config.device = device
    policy.to(device).eval()
    with locate_weights(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return SavedPolicy(policy, *_load_processors(path, policy.config, device), digest, tuple(config.image_features))


def _load_processors(path: str, config: Any, device: str) -> tuple[Any, Any]:
    from lerobot.policies.factory import make_pre_post_processors

    overrides: dict[str, Any] = {"device_processor": {"device": device}}
    if (own_vlm := Path(path) / "vlm").is_dir():  # saved by zk0 0.1, with a name relative to the policy's folder
        overrides["tokenizer_processor"] = {"tokenizer_name": str(own_vlm)}
    try:
        pre, post = make_pre_post_processors(config, path, preprocessor_overrides=overrides)
    except (*HUB_ERRORS, ValueError, KeyError, RuntimeError) as e:
        raise hub_outage(e, path) or PolicyError(
            f"{path}: its processors cannot be loaded ({type(e).__name__}: {first_line(e)}); "
            "expected policy_preprocessor.json and policy_postprocessor.json beside the weights"
        ) from e
    ones = torch.ones(1, config.action_feature.shape[0])
    if torch.equal(post(ones.to(device)).cpu(), ones):
        raise PolicyError(
            f"{path}: its postprocessor does not change actions (LeRobot issue 4415): statistics of the action are "
            "missing, or have another key; the arm would receive normalized numbers instead of degrees"
        )
    return pre, post
