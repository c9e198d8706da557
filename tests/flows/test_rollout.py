"""`zk0 rollout`: its options, and rollouts of a saved policy folder."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli.main import zk0_app
from flows.cli.rollout_command import executed_steps, parse_seeds, rollout_settings
from zk0.errors import SettingsError
from zk0.records import PolicyRecipe, Statistics


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no seed"),
        ("3-", "no seed"),
        ("1,1", "2 seeds, 1 different"),
        ("1, 46-42", "46-42 runs backwards; expected 42-46"),
    ],
)
def test_invalid_seeds(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_seeds(text)


def test_options_replace_the_settings_of_the_session() -> None:
    from zk0.settings.loading import load_session

    session = load_session(Path(__file__).parents[2] / "deployments/sessions/demo.toml")
    settings = rollout_settings(session, ["lift-red"], "1-3", dataset=True)
    assert (settings.tasks, settings.seeds, settings.keep_dataset) == (("lift-red",), (1, 2, 3), True)
    assert settings.max_steps == session.rollout.max_steps
    assert rollout_settings(session, [], None, dataset=False) == session.rollout
    with pytest.raises(SettingsError, match="no task"):
        rollout_settings(None, [], "1", dataset=False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, recordings: dict[str, Path], shared_cache: Path) -> Path:
    """A policy folder that was moved after it was saved."""
    from zk0.data.statistics import measure_statistics
    from zk0.policy.build import build_policy
    from zk0.policy.save_policy import save_policy

    statistics: Statistics = measure_statistics(recordings["a"], (0, 1))
    recipe = PolicyRecipe(path="tiny", cameras=("overhead", "wrist"), joints=6, seed=1)
    policy: Any = build_policy(recipe, shared_cache)
    made = tmp_path_factory.mktemp("made") / "policy"
    save_policy(policy, statistics, made)
    return made.rename(tmp_path_factory.mktemp("moved") / "policy")


def test_without_a_session_as_many_actions_are_executed_as_by_lerobot(saved: Path) -> None:
    assert executed_steps(str(saved)) == json.loads((saved / "config.json").read_text())["n_action_steps"] == 10


@pytest.mark.usefixtures("images")
def test_a_saved_policy_runs_each_attempt_once(saved: Path, tmp_path: Path) -> None:
    session = tmp_path / "session.toml"
    demo = (Path(__file__).parents[2] / "deployments/sessions/demo.toml").read_text()
    session.write_text(demo.replace("max_steps = 70", "max_steps = 6"))
    command = ["rollout", str(saved), "--task", "lift-red", "--task", "stack-red-blue", "--seeds", "5,6"]
    command += ["--out", str(tmp_path / "out"), "--session", str(session), "--films", "1", "--json"]
    first = CliRunner().invoke(zk0_app, command)
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    assert [(r["task"], r["seed"], r["steps"]) for r in found] == [
        (task, seed, 6) for task in ("lift-red", "stack-red-blue") for seed in (5, 6)
    ]
    assert [(tmp_path / "out" / r["video"]).is_file() if r["video"] else None for r in found] == [
        True,
        None,
        True,
        None,
    ]
    again = CliRunner().invoke(zk0_app, command)
    assert json.loads(again.stdout) == found
    assert len(list((tmp_path / "out").rglob("rollout_*.json"))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "fly"], "simulated task 'fly' does not exist"),
        (["--task", "lift-red", "--camera", "overhead"], "expected SIMULATOR=POLICY"),
        (["--task", "lift-red", "--camera", "wrist=observation.images.left"], "takes observation.images.wrist"),
    ],
)
def test_an_impossible_rollout_fails_with_one_line(
    saved: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = CliRunner().invoke(zk0_app, ["rollout", str(saved), "--out", str(tmp_path), *arguments])
    assert done.exit_code in (1, 2)
    assert message in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_a_folder_without_processors_is_refused(saved: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    (copy / "policy_postprocessor.json").unlink()
    done = CliRunner().invoke(zk0_app, ["rollout", str(copy), "--out", str(tmp_path / "out"), "--task", "lift-red"])
    assert done.exit_code == 1
    assert "its processors cannot be loaded" in done.output
    nothing = CliRunner().invoke(
        zk0_app, ["rollout", str(tmp_path), "--out", str(tmp_path / "out"), "--task", "lift-red"]
    )
    assert "cannot be loaded" in nothing.output
