"""A hyperparameter search with real sessions: two flow runs share one folder; best.toml is a valid session file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zk0.settings.loading import load_session

ROOT = Path(__file__).parents[2]
SEARCH = """
import sys
from pathlib import Path
from flows.prefect_local.temporary_server import configured_or_temporary_server

if __name__ == "__main__":
    with configured_or_temporary_server(Path.cwd(), print):
        from flows.hyperparameter_search import hyperparameter_search

        print(hyperparameter_search(
            config="deployments/sessions/smoke.toml", overrides={"rollout.tasks": [], "federation.workers": 0},
            trials=3, folder=sys.argv[1],
            space={"training.lr": {"low": 1e-4, "high": 1e-3, "log": True}},
        ))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_runs_search_in_one_folder(tmp_path: Path) -> None:
    (tmp_path / "search.py").write_text(SEARCH)
    folder, environment = tmp_path / "found", {**os.environ, "PYTHONPATH": str(ROOT)}
    runs = []
    for name in ("one", "two"):
        command = [sys.executable, str(tmp_path / "search.py"), str(folder)]
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
