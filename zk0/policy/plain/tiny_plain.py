"""The policies `tiny-act` and `tiny-diffusion`: LeRobot's own classes, small, randomly initialized, without a download.

Their vision encoder is a ResNet-18, the smallest that LeRobot takes: 11.2 million parameters.
"""

from collections.abc import Callable, Mapping
from typing import Any

from zk0.policy.load_files import contract_features
from zk0.records import PolicyRecipe
from zk0.settings.training_settings import TINY_ACT


def build_tiny_act(recipe: PolicyRecipe) -> Any:
    """An ACT policy with chunks of 10 actions and one layer in each transformer."""
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    inputs, outputs = contract_features(recipe, _IMAGE)
    config = ACTConfig(
        device="cpu",
        input_features=inputs,
        output_features=outputs,
        chunk_size=10,
        n_action_steps=10,
        pretrained_backbone_weights=None,
        dim_model=32,
        n_heads=2,
        dim_feedforward=64,
        n_encoder_layers=1,
        n_vae_encoder_layers=1,
        latent_dim=8,
        push_to_hub=False,
    )
    return ACTPolicy(config)


_IMAGE = (96, 96)
"""Height and width that the policies declare; they take images of any size."""
TINY_PLAIN: Mapping[str, Callable[[PolicyRecipe], Any]] = {TINY_ACT: build_tiny_act}
"""Builders by `policy.path`."""
