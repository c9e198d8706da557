"""The policy `base`: built like any other, with a pretrained, frozen vision encoder."""

from pathlib import Path
from typing import Any

import pytest

from zk0.policy.build import build_policy
from zk0.policy.published_config import BASE_POLICY_FOLDER
from zk0.policy.trainable import frozen_digest, trainable_parameters
from zk0.records import PolicyRecipe
from zk0.settings.dataset_settings import ContractSettings
from zk0.settings.loading import load_session
from zk0.settings.session import Session

MAX_BYTES = 10_000_000


@pytest.fixture(scope="module")
def base(shared_cache: Path) -> Any:
    return build_policy(recipe(seed=1), shared_cache)


def recipe(**changes: Any) -> PolicyRecipe:
    return PolicyRecipe(**{"path": "base", "cameras": ("overhead", "wrist"), "joints": 6, "seed": 1} | changes)


def test_its_weights_do_not_depend_on_the_seed(base: Any, shared_cache: Path) -> None:
    again = build_policy(recipe(seed=2), shared_cache)
    assert frozen_digest(again) == frozen_digest(base)
    first = trainable_parameters(base)
    assert all((p == first[n]).all() for n, p in trainable_parameters(again).items())


def test_clients_train_the_expert_and_the_projections_only(base: Any) -> None:
    trained = trainable_parameters(base)
    assert not [n for n in trained if ".vlm." in n]
    assert sum(p.numel() for p in trained.values()) > 100_000


def test_it_is_small_and_its_readme_names_the_script() -> None:
    assert sum(file.stat().st_size for file in BASE_POLICY_FOLDER.rglob("*") if file.is_file()) < MAX_BYTES
    assert "scripts/base/train.py" in (BASE_POLICY_FOLDER / "README.md").read_text()


def test_a_folder_named_base_does_not_replace_it(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    session = load_session(Path("deployments/sessions/lifts.toml")).with_absolute_paths(tmp_path)
    assert isinstance(session, Session)
    assert session.policy.path == "base"
    assert session.contract == ContractSettings()
