"""`zk0.run`: what it hands to the command, and how a failure is told; the notebook shows a whole run."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import zk0
from zk0.errors import FederationError, SettingsError
from zk0.session_command import run_command, with_overrides
from zk0.settings.loading import load_session

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "deployments/sessions/smoke.toml"
NOTEBOOK = ROOT / "docs/examples/session.ipynb"


def test_the_same_session_from_a_file_a_mapping_and_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    import tomllib

    changes = {"rounds": 2, "training.lr": 1e-4}
    expected = load_session(SMOKE, changes, base=tmp_path)
    assert (expected.rounds, expected.output_dir) == (2, str(tmp_path / "outputs"))
    for given in (SMOKE, str(SMOKE), tomllib.loads(SMOKE.read_text()), load_session(SMOKE)):
        assert with_overrides(given, changes) == expected
    with pytest.raises(SettingsError, match="rounds: "):
        zk0.run(SMOKE, {"rounds": 0})


def test_names_that_a_notebook_completes() -> None:
    assert {"__version__", "read", "run"} <= {*dir(zk0)}


def test_a_failed_command_is_an_error_with_all_its_lines(capfd: pytest.CaptureFixture[str]) -> None:
    script = "import sys; print('12:00 a line', file=sys.stderr); print('zk0: no disk', file=sys.stderr); sys.exit({})"
    for code, kind in ((2, SettingsError), (1, FederationError)):
        with pytest.raises(kind, match=r"^no disk$"):
            run_command([sys.executable, "-c", script.format(code)])
    several = (
        "import sys; print('zk0: old', 'log', 'zk0: 2 faults', '  lr', '', '  rounds', sep='\\n', file=sys.stderr)"
    )
    with pytest.raises(FederationError) as raised:
        run_command([sys.executable, "-c", f"{several}; sys.exit(1)"])
    assert str(raised.value) == "2 faults\n  lr\n\n  rounds"
    with pytest.raises(FederationError, match=r"^Killed$"):
        run_command([sys.executable, "-c", "import sys; sys.exit('12:00 a line\\nKilled\\n')"])
    with pytest.raises(FederationError, match="ended with code 3"):
        run_command([sys.executable, "-c", "raise SystemExit(3)"])
    assert "12:00 a line" in capfd.readouterr().err


@pytest.mark.slow
def test_two_sessions_of_one_name_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call returns the results of its own session."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    changes = {"output_dir": str(tmp_path), "rounds": 1}
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(zk0.run, SMOKE, changes | {"seed": seed}) for seed in (1, 2)]
        found = [run.result() for run in runs]
    assert [one.session.seed for one in found] == [1, 2]


def test_the_notebook_is_stored_with_its_outputs() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert str(Path.home()) not in text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell["outputs"] for cell in cells)
    for cell in cells:
        compile("".join(cell["source"]), "cell", "exec")
    forms = [form for cell in cells for output in cell["outputs"] for form in output.get("data", {})]
    assert forms.count("text/html") >= 4
    assert "image/png" in forms


def shown_headings(notebook: Path) -> list[tuple[str, list[str], list[str]]]:
    """For each output its type, its forms, and the words of its first line, which are the columns of a table."""

    def first_line(output: dict[str, Any]) -> list[str]:
        text = output.get("text") or output["data"]["text/plain"]
        return str(text[0]).split()

    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    return [(one["output_type"], sorted(one.get("data", {})), first_line(one)) for one in outputs]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs_a_session(tmp_path: Path) -> None:
    """`zk0.run` with a real session, in an empty folder; its tables have the columns that are stored."""
    (tmp_path / "deployments").symlink_to(ROOT / "deployments")
    copy = Path(shutil.copy(NOTEBOOK, tmp_path / "session.ipynb"))
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    execute = [sys.executable, str(ROOT / "docs/examples/execute.py"), str(copy)]
    done = subprocess.run(execute, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert shown_headings(copy) == shown_headings(NOTEBOOK)
    assert len(list((tmp_path / "outputs/notebook").glob("*_smoke/report.html"))) == 1
