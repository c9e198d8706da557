"""`zk0 plan`, and what `zk0 run` says first."""

import json
from pathlib import Path

from typer.testing import CliRunner, Result

from flows.cli.main import zk0_app
from zk0.resources.session_needs import resource_lines
from zk0.settings.loading import load_session
from zk0.settings.session import Session

SMOKE = Path(__file__).parents[2] / "deployments/sessions/smoke.toml"


def plan(cache: Path, *options: str) -> Result:
    places = ("--set", f"cache_dir={cache}", "--set", f"output_dir={cache / 'out'}")
    return CliRunner().invoke(zk0_app, ["plan", str(SMOKE), *places, *options])


def smoke(cache: Path, **changes: object) -> Session:
    return load_session(SMOKE, {"cache_dir": str(cache), "output_dir": str(cache / "out"), **changes})


def test_a_plan_measures_the_machine_once_and_says_so(tmp_path: Path) -> None:
    first = plan(tmp_path)
    assert first.exit_code == 0, first.output
    assert "zk0 plan: reading the metadata" in first.stderr
    assert "zk0 plan: measuring this machine" in first.stderr
    stages = ("datasets and policy", "checks", "features", "training", "evaluation", "attempts", "session")
    assert all(stage in first.stdout for stage in stages)
    assert "memory: session 1.3 GB, 1 worker(s) 978 MB each; this machine has" in first.stdout
    assert "disk: up to 21 MB in the session's folder" in first.stdout

    second = plan(tmp_path, "--json")
    assert "measuring" not in second.stderr
    found = json.loads(second.stdout)
    assert found["time"]["training"] > 0
    assert all(0 < found["speed"][part] < 1e15 for part in ("vision", "text", "expert", "optimizer"))
    (file,) = (tmp_path / "speed").iterdir()
    file.unlink()
    assert "measuring" in plan(tmp_path, "--fresh").stderr
    assert list((tmp_path / "speed").iterdir()) == [file]
    assert not (tmp_path / "out").exists()


def test_a_session_that_does_not_fit_is_warned_of_before_it_starts(tmp_path: Path) -> None:
    (line,) = resource_lines(smoke(tmp_path))
    assert line.startswith("disk: up to 21 MB in the session's folder (16 MB stay), up to 2 MB in the cache")
    long = smoke(tmp_path, rounds=100, **{"training.local_steps": 10**6})
    lines = resource_lines(long)
    assert any(line.startswith("warning: time: about ") for line in lines)
    assert any(line.startswith("  with --set ") for line in lines)
