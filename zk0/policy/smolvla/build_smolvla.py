"""Build or load a SmolVLA policy with LeRobot."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_model

from zk0.errors import PolicyError
from zk0.policy.load_files import check_complete, contract_features, locate_weights, policy_load_errors
from zk0.policy.smolvla.tiny_geometry import tiny_config, write_tiny_vlm
from zk0.records import PolicyRecipe, clean_text

_VLM_PREFIX = "model.vlm_with_expert.vlm."


def build_tiny_smolvla(recipe: PolicyRecipe, cache: Path) -> Any:
    """The policy `tiny`, randomly initialized; `cache` is a folder for its tokenizer and configuration."""
    from lerobot_policy_smolvla_bundled import BundledSmolVLAConfig, BundledSmolVLAPolicy, read_vlm_files

    settings = tiny_config()
    inputs, outputs = contract_features(recipe, settings["resize_imgs_with_padding"])
    config = BundledSmolVLAConfig(
        device="cpu",
        vlm_files=read_vlm_files(write_tiny_vlm(cache)),
        input_features=inputs,
        output_features=outputs,
        **settings,
    )
    return BundledSmolVLAPolicy(config)


def carry_vlm_files(path: str, config: Any) -> Any:
    """The configuration; where it names the vision-language model by a folder, one that carries the folder's files.

    So the policy can be saved for other places.

    Raises:
        PolicyError: the folder's files cannot be read, or a policy of the Hub names a folder of this machine.
    """
    from lerobot_policy_smolvla_bundled.configuration_smolvla_bundled import bundled

    with policy_load_errors(path):
        return bundled(config, vlm) if (vlm := vlm_folder(path, config)) else config


def vlm_folder(path: str, config: Any) -> Path | None:
    """The folder by which a policy's configuration names its vision-language model; None if it names none.

    Policies that zk0 0.1 saved name it relative to their own folder.

    Raises:
        PolicyError: the policy is of the Hub. Its author would choose which folder's files a saved policy carries.
    """
    relative = Path(path) / config.vlm_model_name
    found = next((f for f in (relative, Path(config.vlm_model_name)) if f.is_dir()), None)
    if found is not None and not Path(path).is_dir():
        raise PolicyError(
            f"{path}: its config.json names a folder of this machine as its vision-language model "
            f"({clean_text(config.vlm_model_name, 200)}); expected the name of a model on the Hub"
        )
    return found


def load_smolvla(path: str, config: Any, revision: str | None = None) -> Any:
    """The saved SmolVLA policy with this configuration; every tensor comes from the saved file.

    The weights of the vision-language model alone (`load_vlm_weights`) are not downloaded, because the saved file
    overwrites them; tensors have the types that they would have after that download. In the policy's configuration
    `load_vlm_weights` is then false, so a folder that it is saved to does not ask for them again.

    Raises:
        PolicyError: the policy cannot be loaded, or the file lacks tensors.
    """
    from lerobot.policies.factory import get_policy_class

    config = carry_vlm_files(path, config)
    asks_for_vlm, config.load_vlm_weights = config.load_vlm_weights, False
    with policy_load_errors(path):
        file = locate_weights(path, revision)
        policy = get_policy_class(config.type)(config)
        _set_dtypes(policy, _stored_vlm_dtype(file), asks_for_vlm)
        load_model(policy, str(file), strict=False)
    check_complete(policy, path, revision)
    return policy


def _stored_vlm_dtype(file: Path) -> torch.dtype:
    """Type of the vision-language model's tensors in a policy's file; float32 if it holds none."""
    with safe_open(str(file), framework="pt") as stored:
        name = next((n for n in stored.keys() if n.startswith(_VLM_PREFIX)), None)  # noqa: SIM118
        stored_type = stored.get_slice(name).get_dtype() if name else "F32"
    return torch.bfloat16 if stored_type == "BF16" else torch.float32


def _set_dtypes(policy: Any, vlm_dtype: torch.dtype, as_with_vlm_weights: bool) -> None:
    """Give the parameters the types that LeRobot gives them when it loads the vision-language model's own weights.

    Those are bf16 for the model and the action expert, but not for the expert's projections of keys and values in
    layers with cross-attention. A policy that does not ask for these weights keeps the file's type, and its expert is
    float32.
    """
    both = policy.model.vlm_with_expert
    for parameter in both.vlm.parameters():
        parameter.data = parameter.data.to(torch.bfloat16 if as_with_vlm_weights else vlm_dtype)
    for name, parameter in both.lm_expert.named_parameters():
        is_bf16 = as_with_vlm_weights and not _is_cross_projection(both, name)
        parameter.data = parameter.data.to(torch.bfloat16 if is_bf16 else torch.float32)


def _is_cross_projection(both: Any, name: str) -> bool:
    """Whether a parameter of the expert projects keys or values in a layer with cross-attention."""
    parts = name.split(".")
    if "cross" not in both.attention_mode or not {"k_proj", "v_proj"} & set(parts):
        return False
    every = both.self_attn_every_n_layers
    return not (every > 0 and int(parts[parts.index("layers") + 1]) % every == 0)
