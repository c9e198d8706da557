"""SmolVLA through lerobot's own classes: build, name what is trained, normalise, save."""

import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from zk0.disk import room_for
from zk0.errors import CheckpointError, PolicyError
from zk0.records import ACTION, CAMERA_PREFIX, STATE, Moments, PolicyRecipe, Statistics
from zk0.robot.tiny import tiny_config, write_tiny_vlm
from zk0.session import BASE, TINY
from zk0.tensor_spec import TensorSpec
from zk0.weights import LazyWeights, WeightsFile

PEFT_NAME = ".default."
"""What peft puts into the names of an adapter's parameters, and leaves out of its files."""
WEIGHTS = "model.safetensors"
SHIPPED = Path(__file__).parent / "base_policy"
"""The folder of the policy `base`."""
VLM_FOLDER = "vlm"
"""Where a saved tiny policy keeps its tokenizer and configuration, relative to its own folder."""


def build_policy(recipe: PolicyRecipe, cache: Path, device: str = "cpu") -> Any:
    """A SmolVLAPolicy in which only the action expert and the projections are trained, in fp32.

    `path` is a Hub name, a folder (of lerobot, or saved here), `tiny` or `base`. Building does not disturb the
    global random state.

    Raises:
        PolicyError: it cannot be loaded, or something under the vision-language model would be trained.
    """
    rng = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(recipe.seed)  # policies are built on the CPU; a GPU's state is left alone
        with redirect_stdout(io.StringIO()):  # lerobot prints its progress
            policy = _tiny(recipe, cache) if recipe.path == TINY else _pretrained(recipe)
    finally:
        torch.set_rng_state(rng)
    _freeze(policy)
    policy.config.device = device
    policy.to(device)
    policy.eval()
    return policy


def _features(recipe: PolicyRecipe, image: tuple[int, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    from lerobot.configs import FeatureType, PolicyFeature

    cameras = {f"{CAMERA_PREFIX}{c}": PolicyFeature(FeatureType.VISUAL, (3, *image)) for c in recipe.cameras}
    inputs = {STATE: PolicyFeature(FeatureType.STATE, (recipe.joints,)), **cameras}
    return inputs, {ACTION: PolicyFeature(FeatureType.ACTION, (recipe.joints,))}


def _tiny(recipe: PolicyRecipe, cache: Path) -> Any:
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    settings = tiny_config()
    inputs, outputs = _features(recipe, settings["resize_imgs_with_padding"])
    config = SmolVLAConfig(
        device="cpu",
        vlm_model_name=str(write_tiny_vlm(cache)),
        input_features=inputs,
        output_features=outputs,
        **settings,
    )
    return SmolVLAPolicy(config)


def _pretrained(recipe: PolicyRecipe) -> Any:
    path = resolved(recipe.path)
    config = read_config(path, recipe.revision)
    image = next((f.shape[-2:] for f in config.image_features.values()), (480, 640))
    config.input_features, config.output_features = _features(recipe, image)
    return read_policy(path, config, recipe.revision)


def resolved(path: str) -> str:
    """The folder of `base`; any other name or folder as it is."""
    return str(SHIPPED) if path == BASE else path


def read_config(path: str, revision: str | None = None) -> Any:
    """The configuration of a saved SmolVLA policy, for the CPU; a tokenizer that lies in its folder is found there.

    Raises:
        PolicyError: it cannot be loaded, or is of another type.
    """
    from draccus.utils import DraccusException
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

    try:
        config = PreTrainedConfig.from_pretrained(path, revision=revision)
    except (OSError, ValueError, RuntimeError, DraccusException) as e:
        raise _unloadable(path, e) from e
    if not isinstance(config, SmolVLAConfig):
        raise PolicyError(f"{path}: a policy of type {config.type}, expected smolvla")
    own_vlm = Path(path) / VLM_FOLDER
    if own_vlm.is_dir() and config.vlm_model_name == VLM_FOLDER:
        config.vlm_model_name = str(own_vlm)
    config.device = "cpu"
    return config


def read_policy(path: str, config: Any, revision: str | None = None) -> Any:
    """The saved policy, whole, with this configuration.

    Raises:
        PolicyError: it cannot be loaded, or tensors are missing.
    """
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    try:
        policy = SmolVLAPolicy.from_pretrained(path, config=config, revision=revision)
    except (OSError, ValueError, RuntimeError, SafetensorError) as e:
        raise _unloadable(path, e) from e
    _check_whole(policy, path, revision)
    return policy


def _unloadable(path: str, error: Exception) -> PolicyError:
    return PolicyError(
        f"{path}: cannot be loaded ({type(error).__name__}: {_first_line(error)}); "
        "expected `tiny`, `base`, a folder saved by lerobot, or a name on the Hub that can be reached"
    )


def weights_file(path: str, revision: str | None = None) -> Path:
    """The weights of a saved policy: in its folder, or in the Hub's cache."""
    from huggingface_hub import hf_hub_download

    local = Path(path) / WEIGHTS
    return local if local.is_file() else Path(hf_hub_download(path, WEIGHTS, revision=revision))


def _check_whole(policy: Any, path: str, revision: str | None) -> None:
    """lerobot leaves a tensor that the file lacks at random values, and only logs it."""
    with safe_open(str(weights_file(path, revision)), framework="pt") as stored:
        present = set(stored.keys())
    state = policy.state_dict()
    loaded = {state[n].data_ptr() for n in present & state.keys()}  # tied tensors are stored once
    if missing := sorted(n for n, t in state.items() if n not in present and t.data_ptr() not in loaded):
        raise PolicyError(
            f"{path}: {WEIGHTS} lacks {len(missing)} of {len(state)} tensors (first: {missing[0]}), "
            "which would stay random; expected the whole policy that config.json describes"
        )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def _freeze(policy: Any) -> None:
    trained_vlm = [n for n, p in policy.model.vlm_with_expert.vlm.named_parameters() if p.requires_grad]
    if trained_vlm:
        raise PolicyError(
            f"{len(trained_vlm)} tensors of the vision-language model would be trained (first: {trained_vlm[0]}); "
            "expected it frozen: train_expert_only and freeze_vision_encoder must be true in the policy's config.json"
        )
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def trained_parameters(policy: Any) -> dict[str, torch.nn.Parameter]:
    """Names and parameters that are trained (and travel), sorted by name."""
    return {n: p for n, p in sorted(policy.named_parameters()) if p.requires_grad}


def trained_weights(policy: Any) -> dict[str, NDArray[np.float32]]:
    """The trained weights: fp32 arrays by name, an adapter's as `zk0.adapter.factor_names` has them.

    On a CPU they are the policy's own memory: what trains on changes them.
    """
    trained = trained_parameters(policy)
    return {n.replace(PEFT_NAME, "."): p.detach().cpu().numpy() for n, p in trained.items()}


def install_weights(policy: Any, weights: Mapping[str, NDArray[Any]]) -> None:
    """Put weights into a policy.

    Raises:
        CheckpointError: names or shapes are not those of the policy; nothing is changed then.
    """
    parameters = trained_parameters(policy)
    if missing := sorted(parameters.keys() ^ weights.keys()):
        raise CheckpointError(f"{len(missing)} tensor names differ from the policy's, first: {missing[0]}")
    specs = weights.specs if isinstance(weights, LazyWeights) else None
    for name, parameter in parameters.items():
        if tuple(parameter.shape) != (found := specs[name].shape if specs else weights[name].shape):
            raise CheckpointError(f"{name}: shape {found}, expected {tuple(parameter.shape)}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if isinstance(weights, WeightsFile) and _is_alike(parameter, weights.specs[name]):
                weights.read(name, 0, parameter.numpy().reshape(-1))  # a copy would take new memory
            else:
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])))


def _is_alike(parameter: torch.Tensor, spec: TensorSpec) -> bool:
    dtype = str(parameter.dtype).removeprefix("torch.")
    return parameter.device.type == "cpu" and parameter.is_contiguous() and dtype == spec.dtype


def frozen_digest(policy: Any) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of everything that is not trained."""
    sha = hashlib.sha256()
    trained = set(trained_parameters(policy))
    for name, tensor in sorted(policy.state_dict().items()):
        if name not in trained:
            sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def lerobot_statistics(statistics: Statistics) -> dict[str, dict[str, NDArray[np.float32]]]:
    """Statistics in the shape that lerobot's processors take."""
    return {
        key: {k: np.asarray(getattr(m, k), dtype=np.float32) for k in ("mean", "std", "min", "max")}
        for key, m in ((STATE, statistics.state), (ACTION, statistics.action))
    }


def make_processors(policy: Any, statistics: Statistics) -> tuple[Any, Any]:
    """lerobot's pre- and postprocessor of this policy: tokenise and normalise, unnormalise.

    Raises:
        PolicyError: normalising would silently do nothing, or not be undone (lerobot issue 4415).
    """
    from lerobot.policies.factory import make_pre_post_processors

    pre, post = make_pre_post_processors(policy.config, dataset_stats=lerobot_statistics(statistics))
    stored = {STATE: _mean_and_std(statistics.state), ACTION: _mean_and_std(statistics.action)}
    normal = pre({key: (mean + std)[None] for key, (mean, std) in stored.items()} | {"task": [""]})
    mean, std = stored[ACTION]
    restored = {key: normal[key][0].cpu() * std + mean for key, (mean, std) in stored.items()}
    restored["the predicted action"] = post(torch.ones_like(mean)[None].to(policy.config.device))[0]
    for what, values in restored.items():
        mean, std = stored.get(what, stored[ACTION])
        if not torch.allclose(values, mean + std, rtol=1e-4, atol=1e-4):
            raise PolicyError(
                f"the policy does not normalise {what} with the statistics it is given: {(mean + std).tolist()} "
                f"comes back as {values.tolist()}; its config.json must map STATE and ACTION to MEAN_STD"
            )
    return pre, post


def _mean_and_std(moments: Moments) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(moments.mean, dtype=torch.float32), torch.tensor(moments.std, dtype=torch.float32)


def save_policy(policy: Any, statistics: Statistics, folder: Path, extra: Mapping[str, str] | None = None) -> None:
    """A complete LeRobot policy folder, whole or not at all, with no absolute path inside.

    A tiny policy carries its tokenizer along in `vlm/` and names it relative to the folder.
    `extra` are further text files by name (README.md, metrics.json).

    Raises:
        DiskFull: there is no room for it.
    """
    pre, post = make_processors(policy, statistics)
    folder.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    local_vlm = Path(policy.config.vlm_model_name)
    try:
        if local_vlm.is_dir():
            with room_for(folder):
                shutil.copytree(local_vlm, half / VLM_FOLDER)
            policy.config.vlm_model_name = VLM_FOLDER
            for step in pre.steps:
                if hasattr(step, "tokenizer_name"):
                    step.tokenizer_name = VLM_FOLDER
        with room_for(folder, SafetensorError):
            policy.save_pretrained(half)
            pre.save_pretrained(half)
            post.save_pretrained(half)
            for name, text in (extra or {}).items():
                (half / name).write_text(text, encoding="utf-8")
        half.chmod(0o755)
        if folder.exists():
            folder.rename(old := half.with_name(f"{half.name}-old"))
            half.rename(folder)
            shutil.rmtree(old)
        else:
            half.rename(folder)
    finally:
        policy.config.vlm_model_name = str(local_vlm) if local_vlm.is_dir() else policy.config.vlm_model_name
        shutil.rmtree(half, ignore_errors=True)
