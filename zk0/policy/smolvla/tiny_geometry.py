"""The policy `tiny`: a SmolVLA small enough to train on two CPU cores, built without a download.

`write_tiny_vlm` writes everything that LeRobot loads by `vlm_model_name` (configuration, processor, tokenizer) into a
folder. The folder holds no weights: LeRobot initializes them at random from the seed. Classes and code path are those
of the 450M policy, with about 850 times fewer parameters.
"""

from pathlib import Path
from typing import Any

from zk0.storage.atomic import atomic_folder

IMAGE_SIDE = 96
_PATCH, _SCALE = 8, 4
_SPECIAL = {
    "pad_token": "<|pad|>",
    "unk_token": "<|unk|>",
    "bos_token": "<|im_start|>",
    "eos_token": "<end_of_utterance>",
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "global_image_token": "<global-img>",
}
VERSION = 1
"""Part of the folder's name. Increase it when the geometry changes."""


def tiny_config() -> dict[str, Any]:
    """The fields of SmolVLAConfig that make the policy tiny: images of 96 x 96 px, chunks of 10 actions."""
    return {
        "resize_imgs_with_padding": (IMAGE_SIDE, IMAGE_SIDE),
        "num_vlm_layers": 4,
        "chunk_size": 10,
        "n_action_steps": 10,
        "num_steps": 5,
        "tokenizer_max_length": 64,
        "load_vlm_weights": False,
        "push_to_hub": False,
    }


def write_tiny_vlm(cache: Path) -> Path:
    """The folder to pass as `vlm_model_name`; written into the cache folder on the first call."""
    target = cache / f"tiny-vlm-{VERSION}"
    if target.is_dir():
        return target
    with atomic_folder(target, existing="keep") as temporary:  # of two processes, the first one's folder stays
        _write_processor_and_config(temporary)
    return target


def _write_processor_and_config(folder: Path) -> None:
    from transformers import (
        LlamaConfig,
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

    tokenizer = _byte_tokenizer()
    text = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=272,
        max_position_embeddings=512,
        rope_theta=100000.0,
        rms_norm_eps=1e-5,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = SmolVLMVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_SIDE,
        patch_size=_PATCH,
    )
    config = SmolVLMConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        scale_factor=_SCALE,
        image_token_id=tokenizer.convert_tokens_to_ids(_SPECIAL["image_token"]),
        pad_token_id=tokenizer.pad_token_id,
    )
    config.architectures = ["SmolVLMForConditionalGeneration"]
    side = {"longest_edge": IMAGE_SIDE}
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size=side, max_image_size=side),
        video_processor=SmolVLMVideoProcessor(size=side, max_image_size=side),
        tokenizer=tokenizer,
        image_seq_len=(IMAGE_SIDE // _PATCH // _SCALE) ** 2,
    ).save_pretrained(folder)
    config.save_pretrained(folder)


def _byte_tokenizer() -> Any:
    """A tokenizer with one token per byte and no merges: it encodes every task text without training."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = [*_SPECIAL.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytes_only = Tokenizer(
        models.BPE(vocab={s: i for i, s in enumerate(symbols)}, merges=[], unk_token=_SPECIAL["unk_token"])
    )
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    named = {k: _SPECIAL[k] for k in ("pad_token", "unk_token", "bos_token", "eos_token")}
    extra = {k: _SPECIAL[k] for k in ("fake_image_token", "image_token", "global_image_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_only,
        padding_side="right",
        model_max_length=256,
        extra_special_tokens={**extra, "end_of_utterance_token": _SPECIAL["eos_token"]},
        **named,
    )
