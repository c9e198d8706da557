"""The policies `tiny-act` and `tiny-diffusion`: LeRobot's own classes, small, randomly initialized, without a download.

Their vision encoder is a ResNet-18, the smallest that LeRobot takes: 11.2 million parameters.
"""

from collections.abc import Callable, Mapping
from typing import Any

from zk0.policy.load_files import contract_features
from zk0.records import PolicyRecipe
from zk0.settings.training_settings import TINY_ACT, TINY_DIFFUSION


def build_tiny_act(recipe: PolicyRecipe) -> Any:
    """An ACT policy with chunks of 10 actions and one layer in each transformer."""
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    config = ACTConfig(
        **_common_settings(recipe),
        chunk_size=10,
        n_action_steps=10,
        dim_model=32,
        n_heads=2,
        dim_feedforward=64,
        n_encoder_layers=1,
        n_vae_encoder_layers=1,
        latent_dim=8,
    )
    return ACTPolicy(config)


def build_tiny_diffusion(recipe: PolicyRecipe) -> Any:
    """A Diffusion Policy that sees two steps and predicts 8 actions in 4 denoising steps."""
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    config = DiffusionConfig(
        **_common_settings(recipe),
        horizon=16,
        n_action_steps=8,
        resize_shape=(64, 64),
        use_separate_rgb_encoder_per_camera=False,
        spatial_softmax_num_keypoints=8,
        down_dims=(16, 32),
        diffusion_step_embed_dim=16,
        noise_scheduler_type="DDIM",
        num_train_timesteps=20,
        num_inference_steps=4,
        do_mask_loss_for_padding=True,
    )
    return DiffusionPolicy(config)


def _common_settings(recipe: PolicyRecipe) -> dict[str, Any]:
    """What both configurations have in common: the contract's features, and a vision encoder with random weights."""
    inputs, outputs = contract_features(recipe, _IMAGE)
    features = {"input_features": inputs, "output_features": outputs}
    return {"device": "cpu", "pretrained_backbone_weights": None, "push_to_hub": False, **features}


_IMAGE = (96, 96)
"""Height and width that the policies declare; they take images of any size."""
TINY_PLAIN: Mapping[str, Callable[[PolicyRecipe], Any]] = {
    TINY_ACT: build_tiny_act,
    TINY_DIFFUSION: build_tiny_diffusion,
}
"""Builders by `policy.path`."""
