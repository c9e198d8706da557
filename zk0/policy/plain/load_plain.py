"""Load a policy of any type with LeRobot's factory."""

from typing import Any

import numpy as np
from safetensors.torch import load_model

from zk0.errors import PolicyError
from zk0.policy.load_files import check_complete, locate_weights, policy_load_errors
from zk0.policy.stored_statistics import read_stored_moments


def load_plain(path: str, config: Any, revision: str | None = None) -> Any:
    """The saved policy with this configuration; every tensor comes from the saved file.

    The weights on which a vision encoder was pretrained are not downloaded, because the saved file overwrites them. In
    the policy's configuration `pretrained_backbone_weights` is then None, so a folder that it is saved to does not ask
    for them again.

    Raises:
        PolicyError: the policy cannot be loaded, the file lacks tensors, or the policy normalizes images otherwise than
            with ImageNet's mean and standard deviation.
    """
    from lerobot.policies.factory import get_policy_class

    _check_image_statistics(path, config, revision)
    if hasattr(config, "pretrained_backbone_weights"):
        config.pretrained_backbone_weights = None
    if hasattr(config, "do_mask_loss_for_padding"):
        config.do_mask_loss_for_padding = True  # all frames are trained on, those at an episode's end, too
    with policy_load_errors(path):
        policy = get_policy_class(config.type)(config)
        load_model(policy, str(locate_weights(path, revision)), strict=False)
    check_complete(policy, path, revision)
    return policy


def _check_image_statistics(path: str, config: Any, revision: str | None) -> None:
    """Check that images are normalized as zk0 will: with ImageNet's statistics, which `lerobot-train` also takes."""
    from lerobot.utils.constants import IMAGENET_STATS

    keys = tuple(config.image_features)
    if config.normalization_mapping["VISUAL"].value == "IDENTITY":
        return
    for key, found in read_stored_moments(path, keys, revision).items():
        for name in ("mean", "std"):
            if name in found and not np.allclose(found[name].ravel(), np.ravel(IMAGENET_STATS[name]), atol=1e-3):
                raise PolicyError(
                    f"{path}: normalizes {key} with {name} {found[name].ravel().tolist()}, expected ImageNet's "
                    f"{np.ravel(IMAGENET_STATS[name]).tolist()}: train it with dataset.use_imagenet_stats"
                )
