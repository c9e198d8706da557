"""The policy of a session, built once per process, with the adapter and the feature cache that its plans ask for."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from zk0.errors import PolicyError
from zk0.policy.build import build_policy
from zk0.policy.lora import lora_attached
from zk0.policy.trainable import frozen_digest, install_personal, personal_weights
from zk0.records import PolicyRecipe
from zk0.settings.plans import RoundPlan
from zk0.settings.training_settings import LocalTrainingSettings
from zk0.training.batches import round_seed
from zk0.training.feature_cache import FeatureCache
from zk0.training.gpu_memory import ReservedMemory
from zk0.training.gpu_share import lock_folder, own_gpu


def planned_adapter(policy: Any, plan: RoundPlan) -> AbstractContextManager[None]:
    """Inside the block the policy has the adapter of the plan: none, or LoRA with the same factors on all clients."""
    if plan.training.scope != "lora":
        return nullcontext()
    seed = round_seed(plan.terms.seed, plan.round, "adapters")  # this string decides every factor A: it must not change
    return lora_attached(policy, plan.training, seed)


def open_feature_cache(cache: Path, policy: Any, recipe: PolicyRecipe, training: LocalTrainingSettings) -> FeatureCache:
    """The feature cache in `cache`/features, of the kind that `training.features` names, which is not `off`."""
    if training.features == "off":
        raise AssertionError('training.features "off" caches nothing')
    limit = int(training.feature_cache_gb * 1e9)
    return FeatureCache(cache / "features", policy, recipe.cameras, training.features, limit, recipe.frozen_digest)


@cache
def _gpu_memory() -> ReservedMemory:
    return ReservedMemory(lock_folder(), own_gpu(), torch.cuda.empty_cache)


_cached: dict[str, tuple[Any, str, Mapping[str, NDArray[Any]]]] = {}
"""Policy, digest of its frozen weights, and the start policy's personal weights."""


def cached_policy(recipe: PolicyRecipe, cache: Path, device: str, rebuild: bool = False) -> tuple[Any, str]:
    """The policy of a recipe and the digest of its frozen weights; built on the first call, then reused.

    On a GPU, other processes of this machine first give back the memory that they keep and do not use.

    The trainable weights are those of the previous user: install your own before you use the policy. Personal weights
    are those of the start policy. With `rebuild` the policy is built again and has its initial weights.

    Args:
        recipe: what to build.
        cache: folder for the tokenizer and configuration of `tiny`.
        device: `cpu` or `cuda`.
        rebuild: build it even if it exists.

    Raises:
        PolicyError: the policy cannot be built, or its frozen weights differ from the recipe's digest.
    """
    if device == "cuda":
        _gpu_memory().claim()
    key = f"{device} {recipe.model_dump_json(exclude={'frozen_digest', 'type'})}"
    if rebuild or key not in _cached:
        _cached.clear()
        policy = build_policy(recipe, cache, device)
        _cached[key] = (policy, frozen_digest(policy), personal_weights(policy))
    policy, found, personal = _cached[key]
    install_personal(policy, personal)
    if recipe.frozen_digest not in (None, found):
        raise PolicyError(
            f"{recipe.path}: frozen weights {found[:12]}, expected {str(recipe.frozen_digest)[:12]}: server and client "
            "built different policies (other weights, or other versions of lerobot or torch)"
        )
    return policy, found
