"""Build or load the policy of a recipe with LeRobot, whatever its kind."""

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from zk0.policy.kinds import kind_of, kind_of_type
from zk0.policy.load_files import contract_features, read_policy_config
from zk0.policy.plain.tiny_plain import TINY_PLAIN
from zk0.policy.published_config import resolve_policy_path
from zk0.policy.scope import mark_personal
from zk0.policy.smolvla.build_smolvla import build_tiny_smolvla
from zk0.records import PolicyRecipe
from zk0.settings.training_settings import TINY


def build_policy(recipe: PolicyRecipe, cache: Path, device: str = "cpu") -> Any:
    """A LeRobot policy in evaluation mode, with its trainable parameters in fp32.

    Building does not change the global random state.

    Args:
        recipe: its `path` is a name on the Hub, a folder saved by LeRobot or zk0, or a policy that ships with zk0.
        cache: folder for the tokenizer and configuration of `tiny`.
        device: `cpu` or `cuda`.

    Raises:
        PolicyError: the policy cannot be loaded, or a pattern of the recipe matches nothing that can be trained.
        HubUnavailable: the Hub cannot be reached now.
    """
    rng = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(recipe.seed)  # LeRobot builds on the CPU; a GPU's random state stays
        with redirect_stdout(io.StringIO()):  # LeRobot prints its progress
            policy = _build(recipe, cache)
    finally:
        torch.set_rng_state(rng)
    kind_of(policy).select_trained(policy, recipe.trained)
    mark_personal(policy, recipe.personal)
    policy.config.device = device
    policy.to(device)
    policy.eval()
    return policy


def _build(recipe: PolicyRecipe, cache: Path) -> Any:
    if recipe.path == TINY:
        return build_tiny_smolvla(recipe, cache)
    if recipe.path in TINY_PLAIN:
        return TINY_PLAIN[recipe.path](recipe)
    path = resolve_policy_path(recipe.path)
    config = read_policy_config(path, recipe.revision)
    image = next((f.shape[-2:] for f in config.image_features.values()), (480, 640))
    config.input_features, config.output_features = contract_features(recipe, image)
    return kind_of_type(config.type).load(path, config, recipe.revision)
