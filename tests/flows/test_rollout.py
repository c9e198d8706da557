"""`zk0 rollout`: what is asked for, and what is said of a policy folder that plain lerobot wrote."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.cli_rollout import attempts_asked_for, parse_seeds
from zk0.errors import SettingsError
from zk0.records import PolicyRecipe, Statistics


@pytest.mark.parametrize(("text", "said"), [("", "no seed"), ("3-", "no seed"), ("1,1", "2 seeds, 1 different")])
def test_seeds_that_are_none(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        parse_seeds(text)


def test_the_command_line_comes_before_the_session() -> None:
    from zk0.session import load_session

    session = load_session(Path(__file__).parents[2] / "deployments/sessions/demo.toml")
    asked = attempts_asked_for(session, ["lift-red"], "1-3", dataset=True)
    assert (asked.tasks, asked.seeds, asked.keep_dataset) == (("lift-red",), (1, 2, 3), True)
    assert asked.max_steps == session.rollout.max_steps
    assert attempts_asked_for(session, [], None, dataset=False) == session.rollout
    with pytest.raises(SettingsError, match="no task"):
        attempts_asked_for(None, [], "1", dataset=False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, recordings: dict[str, Path], kept: Path) -> Path:
    """A policy folder, moved away from where it was made."""
    from zk0.robot.policy import build_policy, save_policy
    from zk0.robot.statistics import measure

    statistics: Statistics = measure(recordings["a"], (0, 1))
    recipe = PolicyRecipe(path="tiny", cameras=("overhead", "wrist"), joints=6, seed=1)
    policy: Any = build_policy(recipe, kept)
    made = tmp_path_factory.mktemp("made") / "policy"
    save_policy(policy, statistics, made)
    return made.rename(tmp_path_factory.mktemp("moved") / "policy")


def test_a_saved_policy_tries_its_tasks_once(saved: Path, tmp_path: Path) -> None:
    from zk0.simulator.rendering import choose_backend

    if choose_backend(required=False) is None:
        pytest.skip("no OpenGL backend renders here")
    session = tmp_path / "session.toml"
    demo = (Path(__file__).parents[2] / "deployments/sessions/demo.toml").read_text()
    session.write_text(demo.replace("max_steps = 50", "max_steps = 6"))
    command = ["rollout", str(saved), "--task", "lift-red", "--task", "stack-red-blue", "--seeds", "5,6"]
    command += ["--out", str(tmp_path / "out"), "--session", str(session), "--films", "1", "--json"]
    first = CliRunner().invoke(app, command)
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
    again = CliRunner().invoke(app, command)
    assert json.loads(again.stdout) == found
    assert len(list((tmp_path / "out").rglob("rollout_*.json"))) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "fly"], "simulated task 'fly' does not exist"),
        (["--task", "lift-red", "--camera", "overhead"], "expected OURS=THEIRS"),
        (["--task", "lift-red", "--camera", "wrist=observation.images.left"], "sees through observation.images.wrist"),
    ],
)
def test_what_cannot_be_tried_is_one_line(saved: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["rollout", str(saved), "--out", str(tmp_path), *arguments])
    assert done.exit_code in (1, 2)
    assert said in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_a_folder_without_processors_is_told(saved: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    (copy / "policy_postprocessor.json").unlink()
    done = CliRunner().invoke(app, ["rollout", str(copy), "--out", str(tmp_path / "out"), "--task", "lift-red"])
    assert done.exit_code == 1
    assert "its processors cannot be loaded" in done.output
    nothing = CliRunner().invoke(app, ["rollout", str(tmp_path), "--out", str(tmp_path / "out"), "--task", "lift-red"])
    assert "cannot be loaded" in nothing.output
