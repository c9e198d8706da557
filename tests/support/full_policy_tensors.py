"""config.json and tensors of the published SmolVLA, as its file lists them: 450,046,176 parameters."""

from collections.abc import Iterator
from typing import Any

from zk0.policy.stored_tensors import StoredTensor

CONFIG: dict[str, Any] = {
    "resize_imgs_with_padding": [512, 512],
    "tokenizer_max_length": 48,
    "chunk_size": 50,
    "num_steps": 10,
    "load_vlm_weights": True,
}
_VLM = "model.vlm_with_expert.vlm."


def full_policy_tensors() -> dict[str, StoredTensor]:
    """Return the tensors by name."""
    return {name: StoredTensor(dtype="F32", shape=shape) for name, shape in _shapes()}


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    vision, text = f"{_VLM}model.vision_model.", f"{_VLM}model.text_model."
    yield from _linear(f"{vision}embeddings.patch_embedding", 768, 3, 16, 16)
    yield f"{vision}embeddings.position_embedding.weight", (1024, 768)
    for layer in range(12):
        at = f"{vision}encoder.layers.{layer}."
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _linear(f"{at}self_attn.{name}", 768, 768)
        yield from (*_linear(f"{at}mlp.fc1", 3072, 768), *_linear(f"{at}mlp.fc2", 768, 3072))
        yield from (*_linear(f"{at}layer_norm1", 768), *_linear(f"{at}layer_norm2", 768))
    yield from _linear(f"{vision}post_layernorm", 768)
    yield f"{_VLM}model.connector.modality_projection.proj.weight", (960, 12_288)
    yield f"{text}embed_tokens.weight", (49_280, 960)
    yield f"{_VLM}lm_head.weight", (49_280, 960)
    yield from _decoder(text, width=960, hidden=2560, every_other_keys=960)
    yield from _decoder("model.vlm_with_expert.lm_expert.", width=720, hidden=2048, every_other_keys=320)
    yield from _linear("model.state_proj", 960, 32)
    yield from (*_linear("model.action_in_proj", 720, 32), *_linear("model.action_out_proj", 32, 720))
    yield from (*_linear("model.action_time_mlp_in", 720, 1440), *_linear("model.action_time_mlp_out", 720, 720))


def _decoder(prefix: str, width: int, hidden: int, every_other_keys: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for layer in range(16):
        at = f"{prefix}layers.{layer}."
        source = every_other_keys if layer % 2 else width
        yield from ((f"{at}self_attn.q_proj.weight", (960, width)), (f"{at}self_attn.o_proj.weight", (width, 960)))
        yield from ((f"{at}self_attn.{name}_proj.weight", (320, source)) for name in "kv")
        yield from ((f"{at}mlp.{name}_proj.weight", (hidden, width)) for name in ("gate", "up"))
        yield f"{at}mlp.down_proj.weight", (width, hidden)
        yield from ((f"{at}{name}_layernorm.weight", (width,)) for name in ("input", "post_attention"))
    yield f"{prefix}norm.weight", (width,)


def _linear(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ((f"{name}.weight", shape), (f"{name}.bias", shape[:1]))
