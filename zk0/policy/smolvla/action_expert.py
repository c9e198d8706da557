"""SmolVLA's action expert on a cached prefix: flow-matching loss and action chunks.

LeRobot runs the vision-language model and the action expert in one pass, layer by layer. Here the prefix is given
(`zk0.policy.smolvla.prefix`), so only the state token and the action tokens run. In a layer with joint attention the
action tokens attend to the prefix, the state and each other; in a layer with cross attention to the prefix and the
state only, through projections of the expert's own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 -- its usual name
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.policies.common.vla_utils import create_sinusoidal_pos_embedding
from lerobot.policies.smolvla.smolvlm_with_expert import apply_rope
from torch import Tensor

from zk0.policy.smolvla.prefix import Prefix


def flow_matching_losses(
    policy: Any, prefix: Prefix, state: Tensor, actions: Tensor, noise: Tensor, time: Tensor
) -> Tensor:
    """Squared errors, in the shape of the noise, of the predicted velocity (arXiv 2210.02747, eq. 23).

    With one more axis, `noise` and `time` hold several draws for each frame; what the draws share is computed once.

    Args:
        policy: a SmolVLAPolicy.
        prefix: of the batch's frames.
        state: (batch, joints), normalized.
        actions: (batch, chunk, joints), normalized.
        noise: (batch, [draws,] chunk, max_action_dim).
        time: (batch[, draws]), in (0, 1].
    """
    target = policy.prepare_action({"action": actions})
    target = target if noise.ndim == 3 else target[:, None]
    t = time[..., None, None]
    velocity = _ActionExpert(policy, prefix, state).velocity(t * noise + (1 - t) * target, time)
    return F.mse_loss(noise - target, velocity, reduction="none")


@torch.no_grad()
def predict_chunk(policy: Any, prefix: Prefix, state: Tensor, noise: Tensor) -> Tensor:
    """Normalized actions (batch, chunk, joints); equal to `policy.predict_action_chunk` with the same noise.

    Args:
        policy: a SmolVLAPolicy.
        prefix: of the batch's frames.
        state: (batch, joints), normalized.
        noise: (batch, chunk, max_action_dim).
    """
    actions = euler_integrate(_ActionExpert(policy, prefix, state).velocity, noise, policy.config.num_steps)
    return actions[:, :, : policy.config.action_feature.shape[0]]


_Layer = Callable[..., Tensor]
_run_layer: ContextVar[Callable[..., Tensor]] = ContextVar("run_layer", default=lambda layer, *given: layer(*given))
"""Runs a function of one layer with its arguments; `compiled_layers` replaces it."""


@cache
def _compiled(layer: _Layer, backend: str) -> _Layer:
    """The layer compiled once in a process: all layers of a kind and all sizes of a batch share the code."""
    if backend != "inductor":
        return torch.compile(layer, dynamic=True, backend=backend)
    return torch.compile(layer, dynamic=True, options={"fallback_random": True})  # the same LoRA dropout


@contextmanager
def compiled_layers(backend: str | None) -> Iterator[None]:
    """Inside the block the layers of the action expert are compiled; results are equal up to rounding.

    Args:
        backend: of `torch.compile`; None: nothing is compiled.
    """
    if backend is None:
        yield
        return
    before = _run_layer.set(lambda layer, *given: _compiled(layer, backend)(*given))
    try:
        yield
    finally:
        _run_layer.reset(before)


class _ActionExpert:
    """The action expert on a batch of frames; it computes once what does not depend on noise and time."""

    def __init__(self, policy: Any, prefix: Prefix, state: Tensor) -> None:
        self._policy, self._mask = policy, prefix.mask
        model = policy.model.vlm_with_expert
        _, self._layers = model.get_model_layers([model.get_vlm_model().text_model, model.lm_expert])
        self._context = [
            _cross_projected(layer, *context) if layer is not None and not _is_joint(model, index) else context
            for index, (layer, context) in enumerate(zip(self._layers, _with_state(policy, prefix, state), strict=True))
        ]
        """Per layer: keys and values of prefix and state that the action tokens attend to."""

    def velocity(self, noisy: Tensor, time: Tensor) -> Tensor:
        """Velocity at noisy actions (batch, [draws,] chunk, max_action_dim) and times (batch[, draws]); same shape."""
        model = self._policy.model
        suffix = _embed_suffix(model, noisy.flatten(0, -3), time.flatten())
        draws, chunk = suffix.shape[0] // self._mask.shape[0], suffix.shape[1]
        masks = _AttentionMasks(self._mask, chunk, draws)
        hidden = self._run(suffix.reshape(len(self._mask), draws * chunk, -1), masks)
        return model.action_out_proj(hidden.to(torch.float32)).reshape(noisy.shape)

    def _run(self, suffix: Tensor, masks: "_AttentionMasks") -> Tensor:
        """The action tokens (batch, draws * chunk, width) after all layers of the expert."""
        model = self._policy.model.vlm_with_expert
        run_layer = _run_layer.get()
        for index, (expert, (keys, values)) in enumerate(zip(self._layers, self._context, strict=True)):
            if expert is not None and _is_joint(model, index):
                suffix = run_layer(_joint_layer, model, expert, suffix, keys, values, masks.joint, masks.joint_position)
            elif expert is not None:
                position = masks.across_position
                suffix = run_layer(_across_layer, model, expert, suffix, keys, values, masks.across, position)
        return model.lm_expert.norm(suffix)


def _embed_suffix(model: Any, noisy: Tensor, time: Tensor) -> Tensor:
    """Action tokens (batch, chunk, width) of noisy actions and times; the first output of LeRobot's `embed_suffix`.

    LeRobot's also makes attention masks from a list, for which a GPU is waited for in each call.
    """
    actions, expert, config = model.action_in_proj(noisy), model.vlm_with_expert, model.config
    periods = (expert.expert_hidden_size, config.min_period, config.max_period)
    embedded = create_sinusoidal_pos_embedding(time, *periods, device=actions.device).type(dtype=actions.dtype)
    tokens = torch.cat([actions, embedded[:, None, :].expand_as(actions)], dim=2)
    return cast(Tensor, model.action_time_mlp_out(F.silu(model.action_time_mlp_in(tokens))))


def _is_joint(model: Any, index: int) -> bool:
    """Whether the layer has joint attention (action tokens attend to each other too) rather than cross attention."""
    return bool(model.self_attn_every_n_layers > 0 and index % model.self_attn_every_n_layers == 0)


def _cross_projected(expert: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of a frozen layer, projected for the expert's cross attention."""
    attention, heads = expert.self_attn, (*keys.shape[:2], -1, expert.self_attn.head_dim)
    return (
        attention.k_proj(keys.to(attention.k_proj.weight.dtype).flatten(2)).view(heads),
        attention.v_proj(values.to(attention.v_proj.weight.dtype).flatten(2)).view(heads),
    )


def _with_state(policy: Any, prefix: Prefix, state: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Per layer: keys and values of the prefix and of the state token, which runs through the frozen layers."""
    model = policy.model.vlm_with_expert
    hidden = policy.model.state_proj(policy.prepare_state({"observation.state": state}))[:, None]
    position = prefix.mask.sum(dim=1, keepdim=True)
    mask = _with_state_column(prefix.mask)[:, None]
    vlm_layers = model.get_vlm_model().text_model.layers
    for index, layer in enumerate(vlm_layers):
        query, key, value = _project(layer, hidden)
        query, key = apply_rope(query, position), apply_rope(key, position)
        keys = torch.cat([prefix.layers[index][0].to(key.dtype), key], dim=1)
        values = torch.cat([prefix.layers[index][1].to(value.dtype), value], dim=1)
        yield keys, values
        if index + 1 < len(vlm_layers):
            hidden = _finish_layer(layer, _attention(model, mask, query, keys, values), hidden)


def _with_state_column(mask: Tensor) -> Tensor:
    """The mask (batch, tokens) with a column of True for the state token."""
    return torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)


class _AttentionMasks:
    """Attention masks and positions of `draws` x `chunk` action tokens; tokens of different draws are independent."""

    def __init__(self, prefix: Tensor, chunk: int, draws: int) -> None:
        batch, device = prefix.shape[0], prefix.device
        prefix_length = prefix.sum(dim=1, keepdim=True)
        context = _with_state_column(prefix)
        steps = torch.arange(chunk, device=device).repeat(draws)[None]
        draw = torch.arange(draws, device=device).repeat_interleave(chunk)[None]
        causal = (steps <= steps.T) & (draw == draw.T)
        count = chunk * draws
        self.joint_position = prefix_length + 1 + steps
        self.across_position = steps.expand(batch, count)
        self.across = context[:, None].expand(batch, count, context.shape[1])
        self.joint = torch.cat([self.across, causal[None].expand(batch, count, count)], dim=2)


def _project(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, each (batch, tokens, heads, head dim), before rotary embedding."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden).to(attention.q_proj.weight.dtype)
    heads = (*normed.shape[:-1], -1, attention.head_dim)
    return (
        attention.q_proj(normed).view(heads),
        attention.k_proj(normed).view(heads),
        attention.v_proj(normed).view(heads),
    )


def _attention(model: Any, mask: Tensor, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return model.get_attention_interface()(mask, query.shape[0], query.shape[-1], query, keys, values)


def _joint_layer(
    model: Any, expert: Any, suffix: Tensor, keys: Tensor, values: Tensor, mask: Tensor, position: Tensor
) -> Tensor:
    """The action tokens after a layer of the expert with joint attention."""
    query, key, value = _project(expert, suffix)
    query, key = apply_rope(query, position), apply_rope(key, position)
    keys, values = torch.cat([keys.to(key.dtype), key], dim=1), torch.cat([values.to(value.dtype), value], dim=1)
    return _finish_layer(expert, _attention(model, mask, query, keys, values), suffix)


def _across_layer(
    model: Any, expert: Any, suffix: Tensor, keys: Tensor, values: Tensor, mask: Tensor, position: Tensor
) -> Tensor:
    """The action tokens after a layer of the expert with cross attention."""
    attention = expert.self_attn
    normed = expert.input_layernorm(suffix).to(attention.q_proj.weight.dtype)
    query = apply_rope(attention.q_proj(normed).view(*normed.shape[:-1], -1, attention.head_dim), position)
    return _finish_layer(expert, _attention(model, mask, query, keys, values), suffix)


def _finish_layer(layer: Any, attended: Tensor, hidden: Tensor) -> Tensor:
    """Output projection, residual and MLP of a layer; sums keep the layer's dtype, as LeRobot's in-place sums do."""
    after = layer.self_attn.o_proj(attended.to(layer.self_attn.o_proj.weight.dtype))
    after = (after + hidden).to(after.dtype)
    out = layer.mlp(layer.post_attention_layernorm(after))
    return (out + after).to(out.dtype)
