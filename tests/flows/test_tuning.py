"""A hyperparameter search with real sessions: two flow runs share one folder; best.toml is a valid session file."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli.tune_command import parse_space
from zk0.errors import SettingsError
from zk0.settings.loading import load_session

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("training.lr=1e-4", "--space training.lr=0.0001: Input should be a valid dictionary or instance of Dimension"),
        ("training.lr={low=1}", "expected either low and high, or choices"),
        ("training.lr={low=2, high=1}", "low 2 is above high 1"),
    ],
)
def test_what_cannot_be_searched(given: str, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        parse_space([given])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_runs_search_in_one_folder(tmp_path: Path) -> None:
    folder, environment = tmp_path / "found", {**os.environ, "PYTHONPATH": str(ROOT)}
    runs = []
    for name in ("one", "two"):
        command = [sys.executable, "-m", "flows.cli.main", "tune", "deployments/sessions/smoke.toml", "--quiet"]
        command += ["--trials", "3", "--out", str(folder), "--set", "rollout.tasks=[]", "--set", "federation.workers=0"]
        command += ["--space", "training.lr={low=1e-4, high=1e-3, log=true}"]
        home = {"PREFECT_HOME": str(tmp_path / name)}
        with (tmp_path / f"{name}.log").open("w") as log:
            runs.append(subprocess.Popen(command, cwd=ROOT, env=environment | home, stdout=log, stderr=log))
    assert [run.wait(800) for run in runs] == [0, 0], [
        (tmp_path / f"{n}.log").read_text()[-2000:] for n in ("one", "two")
    ]
    rows = json.loads((folder / "results.json").read_text())
    assert [(row["number"], row["outcome"]) for row in rows] == [(n, "finished") for n in range(3)]
    best = min(rows, key=lambda row: row["loss"])
    found = load_session(folder / "best.toml")
    assert found.training.lr == best["settings"]["training.lr"]
    assert len({row["settings"]["training.lr"] for row in rows}) == 3
