from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zk0.records import PolicyRecipe, Statistics
from zk0.session import (
    ContractSettings,
    DataSettings,
    RoundPlan,
    SchedulerSettings,
    SimulatorSettings,
    Terms,
    TrainingSettings,
)


@pytest.fixture(scope="session")
def recipe() -> PolicyRecipe:
    """The tiny policy."""
    return PolicyRecipe(path="tiny", cameras=("overhead", "wrist"), joints=6, seed=1)


@pytest.fixture(scope="session")
def terms() -> Terms:
    """What clients are told."""
    return Terms(
        session="test", seed=42, contract=ContractSettings(), data=DataSettings(), simulator=SimulatorSettings()
    )


@pytest.fixture(scope="session")
def statistics(recordings: dict[str, Path]) -> Statistics:
    """Pooled over the training episodes of two clients."""
    from zk0.robot.statistics import measure, pool

    return pool([measure(recordings["a"], (0, 1)), measure(recordings["b"], (0,))])


@pytest.fixture
def policy(recipe: PolicyRecipe, kept: Path) -> Any:
    """A tiny policy of one's own."""
    from zk0.robot.policy import build_policy

    return build_policy(recipe, kept)


@pytest.fixture(scope="session")
def start(recipe: PolicyRecipe, kept: Path) -> tuple[Path, str]:
    """Global weights of round 0: path and digest."""
    from zk0.robot.policy import build_policy, trained_weights
    from zk0.weights import save_weights

    path = kept / "start.safetensors"
    return path, save_weights(path, trained_weights(build_policy(recipe, kept)))[0]


@pytest.fixture
def plan(
    terms: Terms, recipe: PolicyRecipe, statistics: Statistics, start: tuple[Path, str]
) -> Callable[..., RoundPlan]:
    """A plan for client a, with what a test wants changed; dicts change a table of settings."""

    def make(
        training: dict[str, Any] | None = None, scheduler: dict[str, Any] | None = None, **changes: Any
    ) -> RoundPlan:
        values = {"terms": terms, "round": 1, "client": "a", "recipe": recipe, "global_digest": start[1]}
        values |= {"statistics": statistics, "lr": 1e-3, "mu": 0.0}
        chosen = TrainingSettings(**({"local_steps": 4, "batch_size": 8} | (training or {})))
        return RoundPlan(**values | changes, training=chosen, scheduler=SchedulerSettings(**(scheduler or {})))

    return make


@pytest.fixture(scope="session")
def full(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The 450M policy with random weights."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    from zk0.robot.policy import build_policy

    vlm = real_data.parent / "models" / "SmolVLM2-500M-Video-Instruct"
    if not vlm.is_dir():
        pytest.skip(f"no configuration of the full vision-language model at {vlm}")
    base = tmp_path_factory.mktemp("full") / "base"
    inputs = {"observation.images.camera1": PolicyFeature(FeatureType.VISUAL, (3, 256, 256))}
    import torch

    torch.manual_seed(0)
    SmolVLAPolicy(
        SmolVLAConfig(device="cpu", vlm_model_name=str(vlm), input_features=inputs, push_to_hub=False)
    ).save_pretrained(base)
    return build_policy(PolicyRecipe(path=str(base), cameras=("overhead", "wrist"), joints=6, seed=1), base.parent)
