from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zk0.records import PolicyRecipe, Statistics
from zk0.settings.dataset_settings import ContractSettings, DataSettings, SimulatorSettings
from zk0.settings.plans import RoundPlan, SessionTerms
from zk0.settings.training_settings import LocalTrainingSettings, SchedulerSettings


@pytest.fixture(scope="session")
def recipe() -> PolicyRecipe:
    """The tiny policy."""
    return PolicyRecipe(path="tiny", cameras=("overhead", "wrist"), joints=6, seed=1)


@pytest.fixture(scope="session")
def terms() -> SessionTerms:
    """The session's terms, which clients receive."""
    return SessionTerms(
        session="test", seed=42, contract=ContractSettings(), data=DataSettings(), simulator=SimulatorSettings()
    )


@pytest.fixture(scope="session")
def statistics(recordings: dict[str, Path]) -> Statistics:
    """Pooled over the training episodes of two clients."""
    from zk0.data.statistics import measure_statistics, pool_moments

    return pool_moments([measure_statistics(recordings["a"], (0, 1)), measure_statistics(recordings["b"], (0,))])


@pytest.fixture
def policy(recipe: PolicyRecipe, shared_cache: Path) -> Any:
    """A tiny policy that the test may change."""
    from zk0.policy.build import build_policy

    return build_policy(recipe, shared_cache)


@pytest.fixture(scope="session")
def start(recipe: PolicyRecipe, shared_cache: Path) -> tuple[Path, str]:
    """Global weights of round 0: path and digest."""
    from zk0.policy.build import build_policy
    from zk0.policy.trainable import trainable_weights
    from zk0.weights.writer import save_weights

    path = shared_cache / "start.safetensors"
    return path, save_weights(path, trainable_weights(build_policy(recipe, shared_cache)))[0]


@pytest.fixture
def plan(
    terms: SessionTerms, recipe: PolicyRecipe, statistics: Statistics, start: tuple[Path, str]
) -> Callable[..., RoundPlan]:
    """Makes a round plan for client a; arguments replace fields of the plan, dicts replace settings."""

    def make(
        training: dict[str, Any] | None = None, scheduler: dict[str, Any] | None = None, **changes: Any
    ) -> RoundPlan:
        values = {"terms": terms, "round": 1, "client": "a", "recipe": recipe, "global_digest": start[1]}
        values |= {"statistics": statistics, "lr": 1e-3, "mu": 0.0}
        chosen = LocalTrainingSettings(**({"local_steps": 4, "batch_size": 8} | (training or {})))
        return RoundPlan(**values | changes, training=chosen, scheduler=SchedulerSettings(**(scheduler or {})))

    return make


@pytest.fixture(scope="session")
def full_base(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with smolvla_base's configuration and random weights, 450M parameters, in place of the Hub."""
    import torch
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    from zk0.policy.load_files import contract_features

    vlm = real_data.parent / "models" / "SmolVLM2-500M-Video-Instruct"
    if not vlm.is_dir():
        pytest.skip(f"no configuration of the full vision-language model at {vlm}")
    cameras = ("camera1", "camera2", "camera3")
    inputs, outputs = contract_features(PolicyRecipe(path="base", cameras=cameras, joints=6, seed=1), (256, 256))
    config = SmolVLAConfig(
        device="cpu", vlm_model_name=str(vlm), input_features=inputs, output_features=outputs, push_to_hub=False
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("full") / "base"
    SmolVLAPolicy(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def full(full_base: Path) -> Any:
    """The 450M policy with random weights, built from that folder."""
    from zk0.policy.build import build_policy

    recipe = PolicyRecipe(path=str(full_base), cameras=("overhead", "wrist"), joints=6, seed=1)
    return build_policy(recipe, full_base.parent)
