"""Users without a home folder, or with one that cannot be written: one line before anything is started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.bot.main import zk0bot_app
from flows.cli.main import zk0_app

ROOT = Path(__file__).parents[2]
SESSION = """
clients = [{name = "a", dataset = "sim:lift-red"}, {name = "b", dataset = "sim:lift-green"}]
policy = {path = "tiny"}
evaluation = {datasets = [{dataset = "sim:lift-blue"}]}
"""


def run(arguments: list[str], home: str, folder: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    kept = {k: v for k, v in os.environ.items() if k not in ("PREFECT_HOME", "PREFECT_API_URL")}
    environment = {**kept, "HOME": home, **variables}
    return subprocess.run(
        [sys.executable, "-m", "flows.cli.main", *arguments], cwd=folder, env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "session.toml"
    path.write_text(SESSION + f'output_dir = "{tmp_path / "outputs"}"\n')
    return path


def one_line(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_a_home_that_cannot_be_written(config: Path, tmp_path: Path) -> None:
    line = one_line(run(["run", str(config)], "/proc/nope", tmp_path))
    assert line.startswith("zk0: PREFECT_HOME: /proc/nope/.prefect cannot be made, because /proc cannot be written (")
    elsewhere = {"PREFECT_HOME": str(tmp_path / "prefect")}
    line = one_line(run(["run", str(config)], "/proc/nope", tmp_path, **elsewhere))
    assert line.startswith("zk0: cache_dir: /proc/nope/.cache/zk0 cannot be made, because /proc cannot be written (")
    assert [path.name for path in tmp_path.iterdir()] == ["session.toml"]


def test_an_unknown_user_without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    from flows.cli.errors_to_exit_codes import check_home
    from zk0.errors import SettingsError

    def unknown(uid: int) -> object:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(
        SettingsError, match=r"HOME is not set, and user \d+ has no entry in the user database; set HOME"
    ):
        check_home()


@pytest.mark.parametrize("home", ["", "lab", "./lab"])
def test_a_home_that_is_no_absolute_path(home: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", home)
    done = CliRunner().invoke(zk0bot_app, ["server", "init", "--host", "lab.example"])
    assert done.exit_code == 2
    assert f"HOME is '{home}', expected the path of a folder from the root" in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        "versus deployments/sessions/smoke.toml --out /proc/nope",
        "tune deployments/sessions/smoke.toml --out /proc/nope",
        "rollout base --task lift-red --out /proc/nope",
        "data repair local:/data/arm /proc/nope",
    ],
)
def test_results_that_cannot_be_written(command: str) -> None:
    done = CliRunner().invoke(zk0_app, command.split())
    assert done.exit_code == 2
    (line,) = done.output.splitlines()
    assert "/proc/nope cannot be made, because /proc cannot be written (" in line
