"""Build or load a SmolVLA policy with LeRobot; only the action expert and the projections are trainable."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model

from zk0.errors import PolicyError, Zk0Error, first_line
from zk0.hub_outages import hub_outage
from zk0.policy.published_config import BASE_POLICY_FOLDER
from zk0.policy.smolvla.tiny_geometry import tiny_config, write_tiny_vlm
from zk0.records import ACTION, CAMERA_PREFIX, STATE, PolicyRecipe
from zk0.settings.training_settings import BASE, TINY

WEIGHTS_FILE = "model.safetensors"
_VLM_PREFIX = "model.vlm_with_expert.vlm."


def build_policy(recipe: PolicyRecipe, cache: Path, device: str = "cpu") -> Any:
    """A SmolVLAPolicy in evaluation mode, with action expert and projections trainable in fp32 and the rest frozen.

    Building does not change the global random state.

    Args:
        recipe: its `path` is a name on the Hub, a folder saved by LeRobot or zk0, `tiny` or `base`.
        cache: folder for the tokenizer and configuration of `tiny`.
        device: `cpu` or `cuda`.

    Raises:
        PolicyError: the policy cannot be loaded, or a tensor of the vision-language model would be trained.
        HubUnavailable: the Hub cannot be reached now.
    """
    rng = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(recipe.seed)  # LeRobot builds on the CPU; a GPU's random state stays
        with redirect_stdout(io.StringIO()):  # LeRobot prints its progress
            policy = _build_tiny(recipe, cache) if recipe.path == TINY else _load_pretrained(recipe)
    finally:
        torch.set_rng_state(rng)
    _check_frozen_and_cast(policy)
    policy.config.device = device
    policy.to(device)
    policy.eval()
    return policy


def _features(recipe: PolicyRecipe, image: tuple[int, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Input and output features of the policy, as LeRobot describes them; `image` is (height, width)."""
    from lerobot.configs import FeatureType, PolicyFeature

    cameras = {f"{CAMERA_PREFIX}{c}": PolicyFeature(FeatureType.VISUAL, (3, *image)) for c in recipe.cameras}
    inputs = {STATE: PolicyFeature(FeatureType.STATE, (recipe.joints,)), **cameras}
    return inputs, {ACTION: PolicyFeature(FeatureType.ACTION, (recipe.joints,))}


def _build_tiny(recipe: PolicyRecipe, cache: Path) -> Any:
    from lerobot_policy_smolvla_bundled import BundledSmolVLAConfig, BundledSmolVLAPolicy, read_vlm_files

    settings = tiny_config()
    inputs, outputs = _features(recipe, settings["resize_imgs_with_padding"])
    config = BundledSmolVLAConfig(
        device="cpu",
        vlm_files=read_vlm_files(write_tiny_vlm(cache)),
        input_features=inputs,
        output_features=outputs,
        **settings,
    )
    return BundledSmolVLAPolicy(config)


def _load_pretrained(recipe: PolicyRecipe) -> Any:
    path = resolve_policy_path(recipe.path)
    config = load_policy_config(path, recipe.revision)
    image = next((f.shape[-2:] for f in config.image_features.values()), (480, 640))
    config.input_features, config.output_features = _features(recipe, image)
    return load_policy(path, config, recipe.revision)


def resolve_policy_path(path: str) -> str:
    """The folder of `base`; any other path or name is returned unchanged."""
    return str(BASE_POLICY_FOLDER) if path == BASE else path


def load_policy_config(path: str, revision: str | None = None) -> Any:
    """The configuration of a saved SmolVLA policy, with device `cpu`.

    If it names the vision-language model by a folder, it is returned as one that carries the folder's files, so that
    the policy can be saved for other places.

    Raises:
        PolicyError: the configuration cannot be loaded, or is not one of SmolVLA.
    """
    from draccus.utils import DraccusException
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

    from lerobot_policy_smolvla_bundled.configuration_smolvla_bundled import bundled

    try:
        with _no_warnings():
            config = PreTrainedConfig.from_pretrained(path, revision=revision)
        if not isinstance(config, SmolVLAConfig):
            raise PolicyError(f"{path}: a policy of type {config.type}, expected smolvla or smolvla_bundled")
        if vlm := vlm_folder(path, config):
            config = bundled(config, vlm)
    except (OSError, ValueError, RuntimeError, DraccusException) as e:
        raise _load_error(path, e) from e
    config.device = "cpu"
    return config


def vlm_folder(path: str, config: Any) -> Path | None:
    """The folder by which a policy's configuration names its vision-language model; None if it names none.

    Policies that zk0 0.1 saved name it relative to their own folder.
    """
    relative = Path(path) / config.vlm_model_name
    return next((f for f in (relative, Path(config.vlm_model_name)) if f.is_dir()), None)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Keep LeRobot from warning that a configuration names no device: the caller sets the device."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def load_policy(path: str, config: Any, revision: str | None = None) -> Any:
    """The saved SmolVLA policy with this configuration; every tensor comes from the saved file.

    The weights of the vision-language model alone (`load_vlm_weights`) are not downloaded, because the saved file
    overwrites them; tensors have the types that they would have after that download. In the policy's configuration
    `load_vlm_weights` is then false, so a folder that it is saved to does not ask for them again.

    Raises:
        PolicyError: the policy cannot be loaded, or the file lacks tensors.
    """
    from lerobot.policies.factory import get_policy_class

    asks_for_vlm, config.load_vlm_weights = config.load_vlm_weights, False
    try:
        file = locate_weights(path, revision)
        policy = get_policy_class(config.type)(config)
        _set_dtypes(policy, _stored_vlm_dtype(file), asks_for_vlm)
        load_model(policy, str(file), strict=False)
    except (OSError, ValueError, RuntimeError, SafetensorError) as e:
        raise _load_error(path, e) from e
    _check_complete(policy, path, revision)
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


def _load_error(path: str, error: Exception) -> Zk0Error:
    return hub_outage(error, path) or PolicyError(
        f"{path}: cannot be loaded ({type(error).__name__}: {first_line(error)}); "
        "expected `tiny`, `base`, a folder saved by lerobot, or a name on the Hub that can be reached"
    )


def locate_weights(path: str, revision: str | None = None) -> Path:
    """The file with a saved policy's weights: in its folder, else in the Hub's cache (downloaded if needed)."""
    from huggingface_hub import hf_hub_download

    local = Path(path) / WEIGHTS_FILE
    return local if local.is_file() else Path(hf_hub_download(path, WEIGHTS_FILE, revision=revision))


def _check_complete(policy: Any, path: str, revision: str | None) -> None:
    """Raise PolicyError if the file lacks a tensor: LeRobot would leave it at random values and only log it."""
    with safe_open(str(locate_weights(path, revision)), framework="pt") as stored:
        present = set(stored.keys())
    state = policy.state_dict()
    loaded = {state[n].data_ptr() for n in present & state.keys()}  # tied tensors are stored once
    if missing := sorted(n for n, t in state.items() if n not in present and t.data_ptr() not in loaded):
        raise PolicyError(
            f"{path}: {WEIGHTS_FILE} lacks {len(missing)} of {len(state)} tensors (first: {missing[0]}), "
            "which would stay random; expected the whole policy that config.json describes"
        )


def _check_frozen_and_cast(policy: Any) -> None:
    """Check that the vision-language model is frozen, and cast the trainable parameters to fp32."""
    trainable_vlm = [n for n, p in policy.model.vlm_with_expert.vlm.named_parameters() if p.requires_grad]
    if trainable_vlm:
        raise PolicyError(
            f"{len(trainable_vlm)} tensors of the vision-language model would be trained (first: {trainable_vlm[0]}); "
            "expected it frozen: train_expert_only and freeze_vision_encoder must be true in the policy's config.json"
        )
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
