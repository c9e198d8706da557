"""`zk0bot serve`: what it runs, and that Prefect and the watcher run, restart and stop with the server."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner
from waiting import wait_until

from flows.bot.main import zk0bot_app
from flows.bot.serve_command import serving_processes, watch_arguments
from flows.cli.main import zk0_app
from flows.prefect_local.ports import choose_port
from zk0.errors import SettingsError
from zk0.federation.network.server import ServerFolder

ROOT = Path(__file__).parents[2]
SESSION = Path("deployments/sessions/federation.toml")


def test_prefect_and_the_watcher_run_beside_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    watch = watch_arguments(SESSION, 3, 12.0, ["training.lr=1e-4"], tmp_path)
    prefect, watcher = serving_processes(ROOT, tmp_path / "prefect", 4321, watch)
    assert [prefect.name, watcher.name] == ["prefect", "watch"]
    for app, spec in ((zk0_app, prefect), (zk0bot_app, watcher)):
        assert spec.command[:2] == (sys.executable, "-m")
        done = CliRunner().invoke(app, [*spec.command[3:], "--help"])
        assert done.exit_code == 0, done.output
    assert watcher.environment == {"PREFECT_API_URL": "http://127.0.0.1:4321/api"}
    assert watcher.command[-1] == str(tmp_path / "prefect" / "zk0-ui" / "api.key")
    assert watcher.command[5:9] == ("--min-fit-clients", "3", "--cooldown", "12.0")


def test_zk0_serve_is_the_same_command(tmp_path: Path) -> None:
    def output(module: str, *arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", module, "serve", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
        return done.returncode, done.stdout + done.stderr

    for arguments in (("--help",), (str(SESSION), "--home", str(tmp_path), "--set", "rounds=0")):
        found = output("flows.cli.main", *arguments)
        assert found == output("flows.bot.main", *arguments)
        assert found[0] == (0 if arguments == ("--help",) else 2)


def test_what_is_wrong_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SettingsError, match=r"training\.lr"):
        watch_arguments(SESSION, 2, 24.0, ["training.lr=-1"], tmp_path)
    with pytest.raises(SettingsError, match=r"no prefect\.yaml; expected the root of a zk0 clone or a folder"):
        serving_processes(tmp_path, tmp_path / "prefect", 4200, ())


class Serving:
    """A home with a server that `zk0bot serve` has started."""

    def __init__(self, home: Path) -> None:
        self.home, self.folder = home, ServerFolder(home / "server")
        port, self.ui_port = choose_port(0), choose_port(0)
        self("server", "init", "--port", str(port))

    def __call__(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "flows.bot.main", *arguments, "--home", str(self.home)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def pid(self, name: str) -> int | None:
        state = self.folder.supervised.state()
        return state.processes[name].pid if state and name in state.processes else None

    def log(self, name: str) -> str:
        file = self.folder.supervised.log(name)
        return file.read_text(encoding="utf-8") if file.is_file() else ""


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    found = Serving(tmp_path)
    yield found
    found.folder.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_command_serves_until_it_is_stopped(serving: Serving) -> None:
    serving("serve", str(SESSION), "--ui-port", str(serving.ui_port))
    wait_until(lambda: "idle: 0 of 2 nodes connected" in serving.log("watch"), 400)
    wait_until(lambda: "Ctrl-C" in serving.log("prefect"), 400)
    first = serving.pid("watch")
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: serving.pid("watch") not in (None, first), 60)
    pids = [serving.pid(name) for name in ("superlink", "gateway", "prefect", "watch")]
    assert serving("server", "stop") == "stopped\n"
    assert [pid for pid in pids if pid is not None and Path(f"/proc/{pid}").exists()] == []
