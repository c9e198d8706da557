"""What in a policy's config.json a session cannot work with, known before weights are downloaded."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zk0.errors import PolicyError
from zk0.policy.policy_shapes import VLM_PREFIX
from zk0.policy.published_config import SMOLVLA_TYPES, read_published_config, resolve_policy_path
from zk0.policy.scope import matching_names, personal_faults, unmatched_patterns
from zk0.policy.stored_tensors import read_stored_tensors
from zk0.records import ACTION, STATE, PolicyRecipe
from zk0.settings.session import Session
from zk0.settings.training_settings import BASE, TINY, TINY_ACT, TINY_DIFFUSION, TrainingSettings

_NO_CACHE = {
    "add_image_special_tokens": "adds image tokens",
    "empty_cameras": "adds empty cameras",
}
"""Fields of SmolVLA's configuration with which features cannot be cached, if they are set."""
_TINY_TYPES = {TINY_ACT: "act", TINY_DIFFUSION: "diffusion"}
_EXTRAS = {"diffusion": "diffusers"}
"""Package that a type of policy needs, which an extra of the type's name installs."""
_NORMALIZATIONS = {
    "STATE": ("MEAN_STD", "MIN_MAX"),
    "ACTION": ("MEAN_STD", "MIN_MAX"),
    "VISUAL": ("MEAN_STD", "IDENTITY"),
}
"""How policies other than SmolVLA may normalize: quantiles cannot be pooled, and images have ImageNet's moments."""


def policy_config_faults(session: Session) -> list[str]:
    """Return everything in a policy's config.json that the session cannot work with."""
    path = session.policy.path
    if path in (TINY, BASE):
        return _scope_faults(session)
    if path in _TINY_TYPES:
        return _unavailable(_TINY_TYPES[path], session) or _scope_faults(session)
    try:
        config = read_published_config(path, session.policy.revision)
    except PolicyError as e:
        return [str(e)]
    kind, joints = config.get("type"), len(session.contract.joints)
    if not isinstance(kind, str):
        return [f"config.json names no type of policy (type {kind!r})"]
    found = _unavailable(kind, session) if kind not in SMOLVLA_TYPES else []
    if kind not in SMOLVLA_TYPES:
        found += [*_feature_faults(config, joints), *_normalization_faults(config)]
    else:
        found += [*_size_faults(config, joints), *_cache_faults(config, session)]
    return [*found, *_scope_faults(session)]


def _scope_faults(session: Session) -> list[str]:
    """Patterns that match nothing, and parameters of the scope whose outputs are cached."""
    training, features = session.training, session.training.features
    scope = training.scope if isinstance(training.scope, tuple) else ()
    if not (scope or training.personal):
        return []
    try:
        names = _parameter_names(session)
    except PolicyError as e:
        return [str(e)]
    trained = _trained_names(training, names)
    found = [*unmatched_patterns(scope, names), *personal_faults(training.personal, trained)]
    cached = [name for name in trained if name.startswith(VLM_PREFIX)]
    if cached and features != "off":
        found.append(
            f"training.scope trains {len(cached)} tensors of the vision-language model (first: {cached[0]}), whose "
            f'outputs training.features {features} caches; set training.features = "off"'
        )
    return found


def _trained_names(training: TrainingSettings, names: Sequence[str]) -> list[str]:
    patterns = training.trained_patterns()
    if patterns:
        return sorted(matching_names(patterns, names))
    return [name for name in names if not name.startswith(VLM_PREFIX)]


def _parameter_names(session: Session) -> list[str]:
    """Names of the policy's tensors: of its file, or of a tiny policy, which has no file and is built."""
    path = session.policy.path
    if path != TINY and path not in _TINY_TYPES:
        return sorted(read_stored_tensors(resolve_policy_path(path), session.policy.revision))
    from zk0.policy.build import build_policy

    cameras, joints = session.contract.cameras, len(session.contract.joints)
    recipe = PolicyRecipe(path=path, cameras=cameras, joints=joints, seed=session.seed)
    return sorted(dict(build_policy(recipe, Path(session.cache_dir)).named_parameters()))


def _unavailable(kind: str, session: Session) -> list[str]:
    """What is not installed, and what only SmolVLA can do and the session asks for."""
    training, found = session.training, []
    if kind in _EXTRAS and find_spec(_EXTRAS[kind]) is None:
        found.append(f"a policy of type {kind} needs the package {_EXTRAS[kind]}: pip install 'zk0[{kind}]'")
    if training.features != "off":
        found.append(
            f"training.features {training.features}: features are cached of SmolVLA's frozen layers, and a policy of "
            f'type {kind} trains all that it computes from images; set training.features = "off"'
        )
    if training.scope == "lora":
        found.append(
            f"training.scope lora: LoRA changes SmolVLA's action expert, which a policy of type {kind} does not "
            'have; set training.scope = "all"'
        )
    return found


def _feature_faults(config: dict[str, Any], joints: int) -> list[str]:
    """Sizes of state and action that are not the contract's: the weights depend on them."""
    faults = []
    for group, key in (("input_features", STATE), ("output_features", ACTION)):
        features = config.get(group)
        feature = features.get(key) if isinstance(features, dict) else None
        shape = feature.get("shape") if isinstance(feature, dict) else None
        if shape != [joints]:
            faults.append(f"{key} of shape {shape}, expected the contract's {joints} joints: [{joints}]")
    return faults


def _normalization_faults(config: dict[str, Any]) -> list[str]:
    chosen = config.get("normalization_mapping")
    modes = chosen if isinstance(chosen, dict) else {}
    return [
        f"normalization_mapping {name} {modes.get(name)}, expected {' or '.join(allowed)}"
        for name, allowed in _NORMALIZATIONS.items()
        if modes.get(name) not in allowed
    ]


def _size_faults(config: dict[str, Any], joints: int) -> list[str]:
    sizes = {name: config.get(name) for name in ("max_state_dim", "max_action_dim")}
    return [
        f"{name} {size}, expected at least the contract's {joints} joints"
        for name, size in sizes.items()
        if isinstance(size, int) and size < joints
    ]


def _cache_faults(config: dict[str, Any], session: Session) -> list[str]:
    """Reasons for which features cannot be cached, as `zk0.policy.smolvla.prefix.check_prefix_cacheable`."""
    if session.training.features == "off":
        return []
    found = [f"{name} {what}" for name, what in _NO_CACHE.items() if config.get(name)]
    if (config.get("prefix_length") or 0) > 0:
        found.append(f"prefix_length {config['prefix_length']} pads the prefix")
    if config.get("attention_mode", "cross_attn") != "cross_attn":
        found.append(f"attention_mode {config['attention_mode']} is not cross_attn")
    return [f'{reason}, so features cannot be cached; set training.features = "off"' for reason in found]
