"""Which statistics normalize states and actions: the start policy's, or those pooled over the clients."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from zk0.errors import PolicyError, SettingsError
from zk0.evaluation.choose_statistics import choose_statistics
from zk0.policy.carried_statistics import carried_statistics
from zk0.policy.published_config import BASE_POLICY_FOLDER
from zk0.policy.stored_statistics import PREPROCESSOR_FILE
from zk0.records import Moments, PolicyRecipe, Statistics
from zk0.settings.loading import parse_session
from zk0.settings.session import Session

NORMALIZER = "policy_preprocessor_step_5_normalizer_processor.safetensors"


def session(**values: Any) -> Session:
    clients = [{"name": n, "dataset": f"sim:lift-{n}"} for n in ("red", "white")]
    return parse_session(
        {"clients": clients, "evaluation": {"datasets": [{"dataset": "sim:lift-green"}]}, **values}, "test"
    )


def recipe(path: str = "base") -> PolicyRecipe:
    return PolicyRecipe(path=path, cameras=("overhead", "wrist"), joints=6, seed=1)


def scaled(statistics: Statistics, factor: float, joints: int = 6) -> Statistics:
    """The statistics of the same recordings in another unit, or of fewer joints."""

    def moments(one: Moments) -> Moments:
        parts = {name: tuple(factor * v for v in getattr(one, name)[:joints]) for name in ("mean", "std", "min", "max")}
        return Moments(count=9, **parts)

    return Statistics(state=moments(statistics.state), action=moments(statistics.action))


@pytest.fixture(scope="module")
def carried() -> Statistics:
    found = carried_statistics("base")
    assert found is not None
    return found


@pytest.fixture
def copy_of_base(tmp_path: Path) -> Path:
    for name in (PREPROCESSOR_FILE, NORMALIZER):
        shutil.copy(BASE_POLICY_FOLDER / name, tmp_path)
    return tmp_path


def test_the_base_policy_carries_the_statistics_in_its_file(carried: Statistics) -> None:
    stored = load_file(BASE_POLICY_FOLDER / NORMALIZER)
    np.testing.assert_array_equal(carried.state.mean, stored["observation.state.mean"])
    np.testing.assert_array_equal(carried.action.std, stored["action.std"])


def test_policies_without_statistics_carry_none(tmp_path: Path, copy_of_base: Path) -> None:
    assert carried_statistics("tiny") is None
    (empty := tmp_path / "empty").mkdir()
    assert carried_statistics(str(empty)) is None
    several = {f"so100.buffer.{key}": value for key, value in load_file(copy_of_base / NORMALIZER).items()}
    save_file(several, copy_of_base / NORMALIZER)
    assert carried_statistics(str(copy_of_base)) is None


def _change(name: str, values: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        stored = load_file(folder / NORMALIZER)
        save_file({**stored, name: np.asarray(values, dtype=np.float32)}, folder / NORMALIZER)

    return change


def _name_state_file(name: Any) -> Callable[[Path], object]:
    described = {"steps": [{"registry_name": "normalizer_processor", "state_file": name}]}
    return lambda folder: (folder / PREPROCESSOR_FILE).write_text(json.dumps(described))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_change("action.std", [0.0] * 6), "standard deviation of zero"),
        (_change("action.mean", [float("nan")] * 6), "not finite"),
        (_change("action.max", [1.0] * 5), r"\[6, 6, 6, 5\] values"),
        (lambda folder: (folder / NORMALIZER).write_bytes(b"short"), "cannot be read"),
        (lambda folder: (folder / NORMALIZER).unlink(), "which is missing"),
        (lambda folder: (folder / PREPROCESSOR_FILE).write_text("[]"), "not the description"),
        (lambda folder: os.truncate(folder / PREPROCESSOR_FILE, 40_000_001), "40000001 bytes"),
        (_name_state_file("../elsewhere.safetensors"), "the name of a file beside it"),
        (_name_state_file(7), "the name of a file beside it"),
    ],
)
def test_broken_statistics_are_refused(copy_of_base: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(copy_of_base)
    with pytest.raises(PolicyError, match=message):
        carried_statistics(str(copy_of_base))


def test_auto_keeps_the_statistics_of_a_policy_that_fits(carried: Statistics) -> None:
    chosen = choose_statistics(session(), recipe(), scaled(carried, 1.2), None)
    assert (chosen.kind, chosen.statistics) == ("policy", carried)
    assert chosen.reason == "base was trained with them"


@pytest.mark.parametrize(
    ("path", "factor", "joints", "reason"),
    [
        ("tiny", 1.0, 6, "tiny carries none"),
        ("base", np.pi / 180, 6, "joint 0 of the state has mean"),
        ("base", 1.0, 5, "have 6 joints, the clients' 5"),
    ],
)
def test_auto_pools_where_the_policys_statistics_do_not_fit(
    carried: Statistics, path: str, factor: float, joints: int, reason: str
) -> None:
    pooled = scaled(carried, factor, joints)
    chosen = choose_statistics(session(), recipe(path), pooled, None)
    assert (chosen.kind, chosen.statistics) == ("pooled", pooled)
    assert reason in chosen.reason


def test_several_groups_have_pooled_statistics(carried: Statistics) -> None:
    several = session(contract={"other_groups": True})
    assert choose_statistics(several, recipe(), scaled(carried, 1.0), None).kind == "pooled"
    with pytest.raises(SettingsError, match="statistics of one group only"):
        session(normalization="policy", contract={"other_groups": True})


def test_a_resumed_session_keeps_its_choice(carried: Statistics) -> None:
    assert choose_statistics(session(), recipe(), scaled(carried, 1.0), "pooled").kind == "pooled"
    assert choose_statistics(session(), recipe(), scaled(carried, 0.01), "pooled").kind == "pooled"


def test_the_setting_decides(carried: Statistics) -> None:
    pooled = scaled(carried, 0.01)
    for kind in ("pooled", "client"):
        chosen = choose_statistics(session(normalization=kind), recipe(), pooled, None)
        assert (chosen.kind, chosen.statistics) == (kind, pooled)
    assert choose_statistics(session(normalization="policy"), recipe(), pooled, None).statistics == carried
    with pytest.raises(PolicyError, match=r'tiny carries none.*normalization = "pooled"'):
        choose_statistics(session(normalization="policy"), recipe("tiny"), pooled, None)


def test_a_joint_that_hardly_moved_is_refused_by_name(copy_of_base: Path, carried: Statistics) -> None:
    """An offset of 0.1 degrees would become 100,000."""
    arrays = load_file(copy_of_base / NORMALIZER)
    arrays["action.std"][4] = 2e-6
    save_file(arrays, copy_of_base / NORMALIZER)
    message = r"wrist_roll\.pos has a std of 2e-06 in the policy's statistics of the action, expected at least"
    with pytest.raises(PolicyError, match=message):
        choose_statistics(session(normalization="policy"), recipe(str(copy_of_base)), carried, None)
    found = choose_statistics(session(), recipe(str(copy_of_base)), carried, None)
    assert found.kind == "pooled"
    assert found.reason.startswith("wrist_roll.pos has a std of 2e-06")
