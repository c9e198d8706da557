"""Configuration and weights of a saved policy, and the features of the policy that a recipe asks for."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from zk0.errors import PolicyError, first_line
from zk0.hub_outages import HUB_ERRORS, hub_outage
from zk0.records import ACTION, CAMERA_PREFIX, STATE, PolicyRecipe

WEIGHTS_FILE = "model.safetensors"


def read_policy_config(path: str, revision: str | None = None) -> Any:
    """LeRobot's configuration of a saved policy, with device `cpu`.

    Raises:
        PolicyError: the configuration cannot be loaded, or LeRobot does not know this type of policy.
    """
    from draccus.utils import DraccusException
    from lerobot import policies  # noqa: F401 -- registers all types
    from lerobot.configs import PreTrainedConfig
    from lerobot.utils.import_utils import register_third_party_plugins

    import lerobot_policy_smolvla_bundled  # noqa: F401 -- registers its type

    register_third_party_plugins()
    with policy_load_errors(path, DraccusException), _no_warnings():
        config = PreTrainedConfig.from_pretrained(path, revision=revision)
    config.device = "cpu"
    return config


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Keep LeRobot from warning that a configuration names no device: the caller sets the device."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def policy_load_errors(path: str, *others: type[Exception]) -> Iterator[None]:
    """Turn what LeRobot raises where it cannot load a policy into an error of ours.

    Args:
        path: of the policy.
        others: exceptions besides those of the Hub, of files of weights and of wrong configurations.

    Raises:
        HubUnavailable: the Hub cannot be reached now.
        PolicyError: anything else.
    """
    caught: tuple[type[Exception], ...] = (
        *HUB_ERRORS,
        ValueError,
        RuntimeError,
        TypeError,
        ImportError,
        SafetensorError,
        *others,
    )
    try:
        yield
    except caught as e:
        raise hub_outage(e, path) or PolicyError(
            f"{path}: cannot be loaded ({type(e).__name__}: {first_line(e)}); "
            "expected a policy that ships with zk0, a folder saved by lerobot, or a name on the Hub that can be reached"
        ) from e


def locate_weights(path: str, revision: str | None = None) -> Path:
    """The file with a saved policy's weights: in its folder, else in the Hub's cache (downloaded if needed)."""
    from huggingface_hub import hf_hub_download

    local = Path(path) / WEIGHTS_FILE
    return local if local.is_file() else Path(hf_hub_download(path, WEIGHTS_FILE, revision=revision))


def check_complete(policy: Any, path: str, revision: str | None) -> None:
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


def contract_features(recipe: PolicyRecipe, image: tuple[int, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Input and output features of the policy, as LeRobot describes them; `image` is (height, width)."""
    from lerobot.configs import FeatureType, PolicyFeature

    cameras = {f"{CAMERA_PREFIX}{c}": PolicyFeature(FeatureType.VISUAL, (3, *image)) for c in recipe.cameras}
    inputs = {STATE: PolicyFeature(FeatureType.STATE, (recipe.joints,)), **cameras}
    return inputs, {ACTION: PolicyFeature(FeatureType.ACTION, (recipe.joints,))}
