"""SmolVLA's prefix: what the frozen vision-language model computes of images and task, once for each frame.

SmolVLA's attention mask keeps image and language tokens from attending to state, actions and noise, and no weight of
the vision-language model is trained. So the prefix's keys and values in every layer depend on the frame and the task
alone and can be cached: either the image embeddings (outputs of the connector; the language model then runs in every
step, without a graph), or the keys and values themselves. Only the state token and the action expert
(`zk0.policy.smolvla.action_expert`) run with a graph. Losses and actions equal those of LeRobot's
`SmolVLAPolicy.forward` (lerobot/policies/smolvla/modeling_smolvla.py) up to rounding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.policies.common.vla_utils import make_att_2d_masks
from torch import Tensor

from zk0.errors import PolicyError


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the image and language tokens of a batch of frames."""

    layers: Sequence[tuple[Tensor, Tensor]]
    """Per layer: keys after rotary embedding and values, each (batch, tokens, kv heads, head dim)."""
    mask: Tensor
    """(batch, tokens) bool: False where the language is padded."""

    def stack(self) -> Tensor:
        """Keys and values in one tensor (batch, layers, 2, tokens, kv heads, head dim), as the cache stores them."""
        return torch.stack([torch.stack(layer, dim=1) for layer in self.layers], dim=1)

    @staticmethod
    def unstack(stacked: Tensor, mask: Tensor) -> "Prefix":
        """The prefix of a tensor that `stack` returned."""
        return Prefix([(layer[:, 0], layer[:, 1]) for layer in stacked.unbind(dim=1)], mask)


@dataclass(frozen=True)
class PrefixGeometry:
    """The sizes of a prefix."""

    image_tokens: int
    """Tokens of one image."""
    width: int
    """Of a connector output."""
    layers: int
    kv_heads: int
    head_dim: int


def prefix_geometry(policy: Any) -> PrefixGeometry:
    """The sizes of this policy's prefix, which decide how many bytes a frame's features take."""
    model = policy.model.vlm_with_expert
    vision, text = model.vlm.config.vision_config, model.vlm.config.text_config
    height, width = (
        policy.config.resize_imgs_with_padding or next(iter(policy.config.image_features.values())).shape[1:]
    )
    patches = (height // vision.patch_size) * (width // vision.patch_size)
    return PrefixGeometry(
        image_tokens=patches // model.vlm.config.scale_factor**2,
        width=text.hidden_size,
        layers=model.num_vlm_layers,
        kv_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
    )


def check_prefix_cacheable(policy: Any) -> None:
    """Check that the prefix depends on frame and task alone, so that it may be cached.

    Raises:
        PolicyError: a part of the vision-language model is trained, or the configuration changes the prefix; the
            message names each reason.
    """
    config = policy.config
    trainable = [n for n, p in policy.named_parameters() if ".vlm." in n and p.requires_grad]
    reasons = {
        f"{len(trainable)} tensors of the vision-language model are trained, first: {trainable[:1]}": bool(trainable),
        "add_image_special_tokens is set": config.add_image_special_tokens,
        f"prefix_length {config.prefix_length} pads the prefix": config.prefix_length > 0,
        f"attention_mode {config.attention_mode} is not cross_attn": config.attention_mode != "cross_attn",
        "empty_cameras are added": config.empty_cameras > 0,
    }
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise PolicyError(f'features cannot be cached: {"; ".join(found)}; set training.features = "off"')


@torch.no_grad()
def embed_frames(policy: Any, images: dict[str, Tensor]) -> Tensor:
    """Connector outputs (batch, cameras, tokens, width) of images (batch, 3, H, W) in 0..1 by feature key."""
    prepared, _ = policy.prepare_images(dict(images))
    return torch.stack([policy.model.vlm_with_expert.embed_image(image) for image in prepared], dim=1)


def _prefix_embeddings(policy: Any, features: Tensor, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Input embeddings (batch, tokens, width) of the language model and their mask (batch, tokens)."""
    batch, cameras, per_camera, width = features.shape
    scale = torch.full((), width**0.5, dtype=features.dtype, device=features.device)  # not copied from the CPU
    images = (features * scale).reshape(batch, cameras * per_camera, width)
    language = policy.model.vlm_with_expert.embed_language_tokens(tokens)
    language = language * math.sqrt(language.shape[-1])
    image_mask = torch.ones(images.shape[:2], dtype=torch.bool, device=images.device)
    embeddings = torch.cat([images, language], dim=1)
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, policy.model.state_proj.weight.dtype))
    return embeddings, torch.cat([image_mask, token_mask], dim=1)


@torch.no_grad()
def encode_prefix(policy: Any, features: Tensor, tokens: Tensor, token_mask: Tensor) -> Prefix:
    """Run the language model on image embeddings and task tokens, without a graph.

    Args:
        policy: a SmolVLAPolicy.
        features: (batch, cameras, tokens, width), from `embed_frames`.
        tokens: (batch, length) token ids of the tasks.
        token_mask: (batch, length) bool: False where the tokens are padding.
    """
    embeddings, mask = _prefix_embeddings(policy, features, tokens, token_mask)
    _, cache = policy.model.vlm_with_expert.forward(
        attention_mask=make_att_2d_masks(mask, torch.zeros_like(mask)),
        position_ids=torch.cumsum(mask, dim=1) - 1,
        past_key_values=None,
        inputs_embeds=[embeddings, None],
        use_cache=True,
    )
    return Prefix([(layer.keys.transpose(1, 2), layer.values.transpose(1, 2)) for layer in cache.layers], mask)
