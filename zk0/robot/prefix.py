"""SmolVLA's flow-matching loss and actions from what the frozen part computed once per frame.

Image and language tokens never see the state, the actions or the noise, and nothing under the
vision-language model is trained: their keys and values in every layer depend on the frame and the task
alone. So the image embeddings (connector outputs) are kept, the prefix runs without a graph, and only
the state token and the action expert run with one. Or the keys and values themselves are kept, and no
prefix runs at all. Same numbers as `policy.forward` (lerobot/policies/smolvla/modeling_smolvla.py), to rounding.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- its usual name
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.policies.common.vla_utils import make_att_2d_masks
from lerobot.policies.smolvla.smolvlm_with_expert import apply_rope
from torch import Tensor

from zk0.errors import PolicyError


@dataclass(frozen=True)
class Prefix:
    """Keys and values of image and language tokens."""

    layers: Sequence[tuple[Tensor, Tensor]]
    """Per layer: keys after rotary embedding and values, each (batch, tokens, kv heads, head dim)."""
    mask: Tensor
    """(batch, tokens) bool: False where the language is padded."""

    def stacked(self) -> Tensor:
        """All layers in one tensor (batch, layers, 2, tokens, kv heads, head dim), as frames are kept."""
        return torch.stack([torch.stack(layer, dim=1) for layer in self.layers], dim=1)

    @staticmethod
    def of(stacked: Tensor, mask: Tensor) -> "Prefix":
        """The prefix that was stacked."""
        return Prefix([(layer[:, 0], layer[:, 1]) for layer in stacked.unbind(dim=1)], mask)


@dataclass(frozen=True)
class PrefixGeometry:
    """How large a prefix is."""

    image_tokens: int
    """Tokens of one image."""
    width: int
    """Of a connector output."""
    layers: int
    kv_heads: int
    head_dim: int


def prefix_geometry(policy: Any) -> PrefixGeometry:
    """The sizes that decide how many bytes a frame's features take."""
    both = policy.model.vlm_with_expert
    vision, text = both.vlm.config.vision_config, both.vlm.config.text_config
    height, width = (
        policy.config.resize_imgs_with_padding or next(iter(policy.config.image_features.values())).shape[1:]
    )
    patches = (height // vision.patch_size) * (width // vision.patch_size)
    return PrefixGeometry(
        image_tokens=patches // both.vlm.config.scale_factor**2,
        width=text.hidden_size,
        layers=both.num_vlm_layers,
        kv_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
    )


def check_prefix_is_frozen(policy: Any) -> None:
    """Raises PolicyError with the reason where frames' features may not be computed once and kept."""
    config = policy.config
    trained = [n for n, p in policy.named_parameters() if ".vlm." in n and p.requires_grad]
    reasons = {
        f"{len(trained)} tensors of the vision-language model are trained, first: {trained[:1]}": bool(trained),
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
    batch, cameras, per_camera, width = features.shape
    scale = torch.tensor(width**0.5, dtype=features.dtype, device=features.device)
    images = (features * scale).reshape(batch, cameras * per_camera, width)
    words = policy.model.vlm_with_expert.embed_language_tokens(tokens)
    words = words * math.sqrt(words.shape[-1])
    seen = torch.ones(images.shape[:2], dtype=torch.bool, device=images.device)
    embeddings = torch.cat([images, words], dim=1)
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, policy.model.state_proj.weight.dtype))
    return embeddings, torch.cat([seen, token_mask], dim=1)


@torch.no_grad()
def encode_prefix(policy: Any, features: Tensor, tokens: Tensor, token_mask: Tensor) -> Prefix:
    """Keys and values of features (batch, cameras, tokens, width) and task tokens (batch, length)."""
    embeddings, mask = _prefix_embeddings(policy, features, tokens, token_mask)
    _, cache = policy.model.vlm_with_expert.forward(
        attention_mask=make_att_2d_masks(mask, torch.zeros_like(mask)),
        position_ids=torch.cumsum(mask, dim=1) - 1,
        past_key_values=None,
        inputs_embeds=[embeddings, None],
        use_cache=True,
    )
    return Prefix([(layer.keys.transpose(1, 2), layer.values.transpose(1, 2)) for layer in cache.layers], mask)


def flow_matching_losses(
    policy: Any, prefix: Prefix, state: Tensor, actions: Tensor, noise: Tensor, time: Tensor
) -> Tensor:
    """Squared errors, in the shape of the noise, of the predicted velocity (arXiv 2210.02747, eq. 23).

    `state` (batch, joints) and `actions` (batch, chunk, joints) are normalised; `noise` has the padded
    shape (batch, chunk, max_action_dim), `time` (batch,) lies in (0, 1]. Or several of them for each frame at once:
    (batch, times, chunk, max_action_dim) and (batch, times); what they share is computed once.
    """
    wanted = policy.prepare_action({"action": actions})
    wanted = wanted if noise.ndim == 3 else wanted[:, None]
    at = time[..., None, None]
    velocity = _Expert(policy, prefix, state).velocity(at * noise + (1 - at) * wanted, time)
    return F.mse_loss(noise - wanted, velocity, reduction="none")


class _Expert:
    """The action expert on a batch of frames; what does not depend on noise and time is computed once."""

    def __init__(self, policy: Any, prefix: Prefix, state: Tensor) -> None:
        self._policy, self._mask = policy, prefix.mask
        both = policy.model.vlm_with_expert
        _, self._layers = both.get_model_layers([both.get_vlm_model().text_model, both.lm_expert])
        self._seen = [
            _across(layer, *seen) if layer is not None and not _is_joint(both, index) else seen
            for index, (layer, seen) in enumerate(zip(self._layers, _with_state(policy, prefix, state), strict=True))
        ]

    def velocity(self, noisy: Tensor, time: Tensor) -> Tensor:
        """At noisy actions (batch, [times,] chunk, max_action_dim) and times (batch[, times]), in the same shape."""
        model = self._policy.model
        suffix, _, _ = model.embed_suffix(noisy.flatten(0, -3), time.flatten())
        copies, chunk = suffix.shape[0] // self._mask.shape[0], suffix.shape[1]
        hidden = self._run(suffix.reshape(len(self._mask), copies * chunk, -1), _Masks(self._mask, chunk, copies))
        return model.action_out_proj(hidden.to(torch.float32)).reshape(noisy.shape)

    def _run(self, suffix: Tensor, masks: "_Masks") -> Tensor:
        """The action tokens through the expert, beside what was seen."""
        both = self._policy.model.vlm_with_expert
        for index, (expert, (keys, values)) in enumerate(zip(self._layers, self._seen, strict=True)):
            if expert is not None:
                attend = _attend_jointly if _is_joint(both, index) else _attend_across
                suffix = _finish(expert, attend(both, expert, suffix, keys, values, masks), suffix)
        return both.lm_expert.norm(suffix)


def _is_joint(both: Any, index: int) -> bool:
    """Whether the action tokens of a layer see each other, or only what was seen before them."""
    return bool(both.self_attn_every_n_layers > 0 and index % both.self_attn_every_n_layers == 0)


def _across(expert: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values that the expert's cross attention makes of those of the frozen layers."""
    attention, heads = expert.self_attn, (*keys.shape[:2], -1, expert.self_attn.head_dim)
    return (
        attention.k_proj(keys.to(attention.k_proj.weight.dtype).flatten(2)).view(heads),
        attention.v_proj(values.to(attention.v_proj.weight.dtype).flatten(2)).view(heads),
    )


def _with_state(policy: Any, prefix: Prefix, state: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Layer by layer, keys and values of the prefix and of the state token, which runs through the frozen layers."""
    both = policy.model.vlm_with_expert
    hidden = policy.model.state_proj(policy.prepare_state({"observation.state": state}))[:, None]
    position = prefix.mask.sum(dim=1, keepdim=True)
    mask = _and_state(prefix.mask)[:, None]
    vlm_layers = both.get_vlm_model().text_model.layers
    for index, layer in enumerate(vlm_layers):
        query, key, value = _project(layer, hidden)
        query, key = apply_rope(query, position), apply_rope(key, position)
        keys = torch.cat([prefix.layers[index][0].to(key.dtype), key], dim=1)
        values = torch.cat([prefix.layers[index][1].to(value.dtype), value], dim=1)
        yield keys, values
        if index + 1 < len(vlm_layers):
            hidden = _finish(layer, _attention(both, mask, query, keys, values), hidden)


def _and_state(mask: Tensor) -> Tensor:
    return torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)


class _Masks:
    """Who sees whom, and at which position, of `chunk` action tokens; of several copies none sees another."""

    def __init__(self, prefix: Tensor, chunk: int, copies: int) -> None:
        batch, device = prefix.shape[0], prefix.device
        before = prefix.sum(dim=1, keepdim=True)
        seen = _and_state(prefix)
        steps = torch.arange(chunk, device=device).repeat(copies)[None]
        copy = torch.arange(copies, device=device).repeat_interleave(chunk)[None]
        causal = (steps <= steps.T) & (copy == copy.T)
        count = chunk * copies
        self.joint_position = before + 1 + steps
        self.across_position = steps.expand(batch, count)
        self.across = seen[:, None].expand(batch, count, seen.shape[1])
        self.joint = torch.cat([self.across, causal[None].expand(batch, count, count)], dim=2)


def _project(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden).to(attention.q_proj.weight.dtype)
    heads = (*normed.shape[:-1], -1, attention.head_dim)
    return (
        attention.q_proj(normed).view(heads),
        attention.k_proj(normed).view(heads),
        attention.v_proj(normed).view(heads),
    )


def _attention(both: Any, mask: Tensor, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return both.get_attention_interface()(mask, query.shape[0], query.shape[-1], query, keys, values)


def _attend_jointly(both: Any, expert: Any, suffix: Tensor, keys: Tensor, values: Tensor, masks: _Masks) -> Tensor:
    query, key, value = _project(expert, suffix)
    query, key = apply_rope(query, masks.joint_position), apply_rope(key, masks.joint_position)
    keys, values = torch.cat([keys.to(key.dtype), key], dim=1), torch.cat([values.to(value.dtype), value], dim=1)
    return _attention(both, masks.joint, query, keys, values)


def _attend_across(both: Any, expert: Any, suffix: Tensor, keys: Tensor, values: Tensor, masks: _Masks) -> Tensor:
    attention = expert.self_attn
    normed = expert.input_layernorm(suffix).to(attention.q_proj.weight.dtype)
    query = apply_rope(attention.q_proj(normed).view(*normed.shape[:-1], -1, attention.head_dim), masks.across_position)
    return _attention(both, masks.across, query, keys, values)


def _finish(layer: Any, attended: Tensor, hidden: Tensor) -> Tensor:
    """Sums keep the layer's dtype, as lerobot's sums in place do."""
    after = layer.self_attn.o_proj(attended.to(layer.self_attn.o_proj.weight.dtype))
    after = (after + hidden).to(after.dtype)
    out = layer.mlp(layer.post_attention_layernorm(after))
    return (out + after).to(out.dtype)


@torch.no_grad()
def predict_chunk(policy: Any, prefix: Prefix, state: Tensor, noise: Tensor) -> Tensor:
    """Normalised actions (batch, chunk, joints), as `policy.predict_action_chunk` gives with the same noise."""
    actions = euler_integrate(_Expert(policy, prefix, state).velocity, noise, policy.config.num_steps)
    return actions[:, :, : policy.config.action_feature.shape[0]]
