"""Users without a home folder, or with one that cannot be written: one line before anything is started."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.bot.main import zk0bot_app
from flows.cli.main import zk0_app
from zk0.errors import SettingsError

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


@pytest.fixture
def unknown_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """No HOME, and a user that the system does not know."""
    import pwd

    def unknown(uid: int) -> object:
        raise KeyError(uid)

    for name in ("HOME", "PREFECT_HOME", "ZK0_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("unknown_user")
def test_an_unknown_user_without_home() -> None:
    from zk0.settings.home_folder import expand_home

    assert expand_home("/data/~/x") == Path("/data/~/x")
    for path in ("~", "~/.zk0"):
        with pytest.raises(SettingsError, match=r"~.*: HOME is not set, and user \d+ has no entry .*; set HOME"):
            expand_home(path)
    with pytest.raises(SettingsError, match=r"~nobody-here/x: there is no user nobody-here"):
        expand_home("~nobody-here/x")
    done = CliRunner().invoke(zk0bot_app, ["status"])
    assert done.exit_code == 2
    assert "HOME is not set" in done.output


@pytest.mark.usefixtures("unknown_user")
def test_what_needs_no_home_does_not_ask_for_it(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local session with folders of its own, and commands that read a folder."""
    from zk0.settings.loading import load_session

    monkeypatch.setenv("ZK0_HOME", str(tmp_path / "zk0"))
    with pytest.raises(SettingsError, match=r"~/\.cache/zk0: HOME is not set"):
        load_session(config, {}, base=tmp_path)
    chosen = {"cache_dir": str(tmp_path / "cache")}
    assert load_session(config, chosen, base=tmp_path).output_dir == str(tmp_path / "outputs")
    nodes = {"federation.engine": "deployment", "clients": []}
    with pytest.raises(SettingsError, match=r"~/\.zk0/server: HOME is not set"):
        load_session(config, chosen | nodes, base=tmp_path)
    verified = CliRunner().invoke(zk0_app, ["verify", str(tmp_path)])
    assert "expected a session or a saved policy" in verified.output
    assert CliRunner().invoke(zk0bot_app, ["status"]).exit_code == 0


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


AS_ANOTHER_USER = """
import os, sys
import encodings.idna, email, rich.console, rich.panel, rich.markup, rich._unicode_data, shutil
import flows.bot.main, flows.cli.main, flows.cli.session_run, flows.session_loading, flows.cli.terminal
import flows.prefect_local.prefect_toml, flows.prefect_local.temporary_server, zk0.resources.session_needs
import zk0.data.check.metadata_check, zk0.policy.config_faults, zk0.simulator.tasks
import zk0.federation.network.server, zk0.federation.network.node, zk0.federation.network.enrolment_kit
import zk0.federation.network.hours

os.setgroups([])
os.setgid(12345)
os.setuid(12345)
del os.environ["PREFECT_HOME"]  # from here on nothing is imported: the interpreter itself may lie in the home of root
app = flows.cli.main.zk0_app if sys.argv[1] == "zk0" else flows.bot.main.zk0bot_app
app(sys.argv[2:])
"""


@pytest.fixture
def root_home() -> Iterator[Path]:
    """A folder that everybody may look into, with `home`, into which only root may."""
    if os.getuid() != 0:
        pytest.skip("only root may become another user")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "home").mkdir(mode=0o700)
        (Path(folder) / "session.toml").write_text(SESSION)
        yield Path(folder)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("zk0 run session.toml", "PREFECT_HOME: {home}/.prefect cannot be made, because {home} cannot be written"),
        ("zk0bot server init", "--home: {home}/.zk0/server cannot be read"),
        ("zk0bot server status", "--home: {home}/.zk0/server cannot be read"),
        ("zk0bot status", "--home: {home}/.zk0/server cannot be read"),
        ("zk0bot logs", "--home: {home}/.zk0/server cannot be read"),
        ("zk0bot client start sim:lift-red", "--home: {home}/.zk0/client cannot be read"),
    ],
)
def test_the_home_of_another_user(command: str, expected: str, root_home: Path) -> None:
    """As in a container that `docker run --user` starts with the HOME of root."""
    home = root_home / "home"
    without = ("PREFECT_HOME", "PREFECT_API_URL", "ZK0_HOME")
    kept = {k: v for k, v in os.environ.items() if k not in without and not k.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-c", AS_ANOTHER_USER, *command.split()], cwd=root_home,
        env=kept | {"HOME": str(home), "PREFECT_HOME": str(root_home / "imported"), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert one_line(done).startswith("zk0: " + expected.format(home=home) + " (Permission denied)")
    assert list(home.iterdir()) == []
