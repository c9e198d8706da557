"""The policy that ships: built like any other, its eyes trained before and frozen since."""

from pathlib import Path
from typing import Any

import pytest

from zk0.records import PolicyRecipe
from zk0.robot.policy import SHIPPED, build_policy, frozen_digest, trained_parameters
from zk0.session import ContractSettings, Session, load_session

MAX_BYTES = 10_000_000


@pytest.fixture(scope="module")
def base(kept: Path) -> Any:
    return build_policy(recipe(seed=1), kept)


def recipe(**changes: Any) -> PolicyRecipe:
    return PolicyRecipe(**{"path": "base", "cameras": ("overhead", "wrist"), "joints": 6, "seed": 1} | changes)


def test_it_comes_from_its_file_whatever_the_seed(base: Any, kept: Path) -> None:
    again = build_policy(recipe(seed=2), kept)
    assert frozen_digest(again) == frozen_digest(base)
    first = trained_parameters(base)
    assert all((p == first[n]).all() for n, p in trained_parameters(again).items())


def test_clients_train_the_expert_and_the_projections_only(base: Any) -> None:
    trained = trained_parameters(base)
    assert not [n for n in trained if ".vlm." in n]
    assert sum(p.numel() for p in trained.values()) > 100_000


def test_it_is_small_and_says_where_it_comes_from() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) < MAX_BYTES
    assert "scripts/base/train.py" in (SHIPPED / "README.md").read_text()


def test_a_session_names_it_and_a_folder_of_that_name_does_not_hide_it(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    session = load_session(Path("deployments/sessions/lifts.toml")).at(tmp_path)
    assert isinstance(session, Session)
    assert session.policy.path == "base"
    assert session.contract == ContractSettings()
