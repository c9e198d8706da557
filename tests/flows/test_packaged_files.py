"""Session files that ship with zk0: by name, in a new project, and from the wheel in an empty folder."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import zk0_app
from flows.packaged_files import find_session_file, packaged_root, write_project
from flows.prefect_local.ports import choose_port
from flows.session_loading import load_session_to_run
from zk0.errors import SettingsError

ROOT = Path(__file__).parents[2]
PLUGINS = ("lerobot_policy_smolvla_bundled", "lerobot_robot_so101_simulated")


def test_a_session_of_zk0_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = ROOT / "deployments/sessions/demo.toml"
    assert find_session_file(Path("demo")) == find_session_file(Path("deployments/sessions/demo.toml")) == shipped
    assert load_session_to_run(Path("smoke")).output_dir == str(tmp_path / "outputs")
    Path("demo").write_text("name = 'mine'")
    assert find_session_file(Path("demo")) == Path("demo"), "a file of the user comes first"
    assert find_session_file(Path("other/demo.toml")) == Path("other/demo.toml")
    with pytest.raises(SettingsError, match=r"demos: no such file, and no session of zk0 .*; did you mean demo"):
        find_session_file(Path("demos"))


def test_a_project_has_files_to_edit_whose_flows_are_found(tmp_path: Path) -> None:
    done = CliRunner().invoke(zk0_app, ["init", str(tmp_path / "mine")])
    assert done.exit_code == 0, done.output
    written = sorted(p.relative_to(tmp_path / "mine").as_posix() for p in (tmp_path / "mine").rglob("*.*"))
    assert {"prefect.yaml", "deployments/sessions/demo.toml", "deployments/pools/gpu-process.json"} <= {*written}
    entrypoints = re.findall(r"entrypoint: (\S+)", (tmp_path / "mine/prefect.yaml").read_text())
    of_clone = re.findall(r"entrypoint: (\S+)", (ROOT / "prefect.yaml").read_text())
    assert [e.replace("/", ".").replace(".py:", ".") for e in of_clone] == entrypoints
    again = CliRunner().invoke(zk0_app, ["init", str(tmp_path / "mine")])
    assert (again.exit_code, "exists already" in again.stderr) == (2, True)


def test_flows_are_loaded_by_their_modules(tmp_path: Path) -> None:
    from prefect.flows import load_flow_from_entrypoint

    write_project(tmp_path)
    names = set(re.findall(r"entrypoint: (\S+)", (tmp_path / "prefect.yaml").read_text()))
    assert {load_flow_from_entrypoint(name, use_placeholder_flow=False).name for name in names} == {
        "zk0",
        "zk0-benchmark",
        "zk0-intake",
        "zk0-tune",
    }


@pytest.mark.parametrize("plugin", PLUGINS)
def test_the_wheel_of_a_plugin_has_all_its_modules(plugin: str) -> None:
    folder = ROOT / plugin
    declared = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    assert {*declared["tool"]["hatch"]["build"]["only-include"]} == {
        "py.typed", *(file.name for file in folder.glob("*.py"))
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_wheel_in_an_empty_folder(tmp_path: Path) -> None:
    """The wheels of zk0 and of its two plugins alone; their dependencies are those of this environment."""
    uv = shutil.which("uv") or next((str(p) for p in (ROOT / ".tools/bin/uv",) if p.is_file()), None)
    if uv is None:
        pytest.skip("no uv: it builds the wheel")
    build = [uv, "build", "--all-packages", "--wheel", f"--out-dir={tmp_path}", str(ROOT)]
    built = subprocess.run(build, capture_output=True, text=True)
    if "Failed to resolve requirements" in built.stderr:
        pytest.skip("the build backend cannot be downloaded here")
    assert built.returncode == 0, built.stderr
    wheels = sorted(tmp_path.glob("*.whl"))
    assert [wheel.name.partition("-")[0] for wheel in wheels] == [*PLUGINS, "zk0"]
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tmp_path / "installed")
    (tmp_path / "empty").mkdir()

    environment = {"PATH": "", "HOME": str(tmp_path), "PYTHONPATH": str(tmp_path / "installed")}

    def zk0(*arguments: str, program: str = "cli") -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", f"flows.{program}.main", *arguments]
        return subprocess.run(command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True)

    assert zk0("--version").stdout.startswith("zk0 ")
    for name in (packaged_root() / "deployments/sessions").glob("*.toml"):
        assert (tmp_path / "installed/flows/project/deployments/sessions" / name.name).is_file()
    wrong = zk0("run", "demo", "--set", "rounds=0")
    assert (wrong.returncode, "installed/flows/project" in wrong.stderr, "rounds" in wrong.stderr) == (2, True, True)
    assert zk0("init", "mine").returncode == 0
    assert (tmp_path / "empty/mine/prefect.yaml").is_file()
    assert zk0("server", "init", program="bot").returncode == 0
    assert "start it with `zk0bot server start`" in zk0("run", program="bot").stderr
    ran = zk0("run", "smoke")
    assert ran.returncode == 0, ran.stderr
    (report,) = (tmp_path / "empty/outputs").glob("*_smoke/report.html")
    assert f"report   {report.relative_to(tmp_path / 'empty')}" in ran.stdout
    command = [sys.executable, "-m", "flows.cli.main", "ui", "--port", str(choose_port(0))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path / "empty/mine", env=environment, stdout=pipe, text=True) as ui:
        assert ui.stdout is not None
        assert any("Ctrl-C stops" in line for line in ui.stdout), "it ended before its worker was ready"
        ui.terminate()
        rest = ui.stdout.read()  # until it has ended
    assert ui.returncode == 0, rest
