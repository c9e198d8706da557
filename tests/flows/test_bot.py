"""`zk0bot` commands that need no running process."""

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.bot.main import zk0bot_app
from zk0.federation.network.server import ServerFolder


@pytest.fixture
def bot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Bot":
    monkeypatch.setenv("ZK0_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ZK0_SERVER_IP", raising=False)
    monkeypatch.chdir(tmp_path)
    return Bot(tmp_path / "home")


class Bot:
    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(self, line: str) -> str:
        done = CliRunner().invoke(zk0bot_app, line.split())
        assert done.exit_code == 0, done.output
        return done.output

    def fails(self, line: str, code: int = 2) -> str:
        done = CliRunner().invoke(zk0bot_app, line.split())
        assert done.exit_code == code, done.output
        assert len(done.output.strip().splitlines()) == 1
        return done.output.strip()


def test_it_starts_without_heavy_libraries() -> None:
    code = "import sys, flows.bot.main; print([m for m in ('flwr', 'torch', 'lerobot', 'prefect') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_server_and_a_kit(bot: Bot, tmp_path: Path) -> None:
    assert "127.0.0.1:9092" in bot("server init")
    settings = (bot.home / "server" / "server.toml").read_text()
    assert 'bind = "127.0.0.1"' in settings  # the default is not reachable over the network
    output = bot("server enroll arm-1")
    kit = json.loads((tmp_path / "arm-1.kit").read_text())
    assert kit.keys() == {"name", "server", "ca_certificate", "key", "ledger_key"}
    assert (kit["name"], kit["server"]) == ("arm-1", "127.0.0.1:9092")
    assert kit["ca_certificate"] == (bot.home / "server" / "ca.crt").read_text()
    assert "SHA256:" in output
    secrets = [tmp_path / "arm-1.kit", *(bot.home / "server").glob("*.key"), bot.home / "server" / "secret"]
    assert {stat.S_IMODE(p.stat().st_mode) for p in secrets} == {0o600}
    assert stat.S_IMODE((bot.home / "server").stat().st_mode) == 0o700
    assert "PRIVATE" not in "".join(p.read_text() for p in (bot.home / "server" / "nodes").iterdir())
    assert "arm-1" in bot("server status")
    assert "unknown" in bot("status")


def test_the_server_address_may_come_from_the_environment(
    bot: Bot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZK0_SERVER_IP", "10.1.2.3")
    bot("server init --port 19092")
    bot("server enroll arm-1 --out here.kit")
    assert json.loads((tmp_path / "here.kit").read_text())["server"] == "10.1.2.3:19092"
    assert 'bind = "0.0.0.0"' in (bot.home / "server" / "server.toml").read_text()
    bot("server init --public zk0.example:443")
    bot("server enroll arm-2")
    assert json.loads((tmp_path / "arm-2.kit").read_text())["server"] == "zk0.example:443"
    bot("server init --host zk0.example")  # another name: the same authority, and the same nodes
    assert "arm-1" in bot("server status")


def test_a_revoked_name_can_be_enrolled_with_another_key(bot: Bot, tmp_path: Path) -> None:
    bot("server init")
    bot("server enroll arm-1")
    first = (tmp_path / "arm-1.kit").read_text()
    assert "is enrolled already" in bot.fails("server enroll arm-1")
    assert (tmp_path / "arm-1.kit").read_text() == first
    bot("server revoke arm-1")
    assert "the record of a secure sum has this name" in bot.fails("server enroll secure-sum")
    assert "not enrolled; enrolled are none" in bot.fails("server revoke arm-1")
    bot("server enroll arm-1")
    assert (tmp_path / "arm-1.kit").read_text() != first


@pytest.mark.parametrize("name", ["../x", ".x", "x/y", "x y".replace(" ", "+"), "x" * 65])
def test_an_invalid_name_creates_no_files(bot: Bot, tmp_path: Path, name: str) -> None:
    bot("server init")
    assert "is not a valid name of a node" in bot.fails(f"server enroll {name}")
    assert list((bot.home / "server" / "nodes").iterdir()) == []
    assert list(tmp_path.glob("*.kit")) == []


def test_errors_name_the_missing_step(bot: Bot, tmp_path: Path) -> None:
    assert "create one with `zk0bot server init`" in bot.fails("server enroll arm-1")
    assert "create one with `zk0bot server init`" in bot.fails("server start")
    assert "create one with `zk0bot server init`" in bot.fails("run --rounds 3")
    assert "neither a server nor a node" in bot("status")
    bot("server init")
    assert "start it with `zk0bot server start`" in bot.fails("run --rounds 3")
    assert "was not running" in bot("stop")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bot(f"server init --port {taken.getsockname()[1]}")
        refused = bot.fails("server start")
        assert f"is in use by process {os.getpid()} (" in refused
        assert "`zk0bot server init --port`" in refused
        assert "choose another port with --ui-port" in bot.fails(f"serve --ui-port {taken.getsockname()[1]}")
    bot("server init")
    assert "needs --kit FILE (on the server: zk0bot server enroll)" in bot.fails("client start sim:lift-red")
    assert "no.kit: cannot be read" in bot.fails("client start sim:lift-red --kit no.kit")
    (tmp_path / "bad.kit").write_text("{}")
    assert "not a complete kit" in bot.fails("client start sim:lift-red --kit bad.kit")
    bot("server enroll arm-1")
    assert "no LeRobot dataset" in bot.fails(f"client start local:{tmp_path}/nothing --kit arm-1.kit", 1)
    assert "no such log; nothing has been started here yet" in bot.fails("client log")
    # the operators of server and node can compare the fingerprint of the key
    assert bot("server status").rpartition("SHA256:")[2].strip() in bot(
        "client status"
    )  # both operators can compare the fingerprint
    bot("server enroll arm-2")
    assert "belongs to the node arm-1, not to arm-2" in bot.fails("client start sim:lift-red --kit arm-2.kit")
    assert "leave session file and --rounds out" in bot.fails(f"run --resume {tmp_path} --rounds 3")


def test_what_the_operator_did(bot: Bot) -> None:
    bot("server init")
    bot("server enroll arm-1")
    bot("server revoke arm-1")
    server = ServerFolder(bot.home / "server")
    server.prepare(server.settings().model_copy(update={"port": 9093}))
    acts = [json.loads(line) for line in bot("server audit --json").splitlines()]
    assert [act["act"] for act in acts] == ["init", "enroll", "revoke", "start"]
    assert [json.loads(acts[n]["detail"])["port"] for n in (0, 3)] == [
        9092,
        9093,
    ]  # the file was edited before the start
    assert acts[1]["detail"] == acts[2]["detail"]
    assert acts[1]["detail"].startswith("arm-1 SHA256:")
    assert all(act["user"] and act["at"] for act in acts)
    assert " ".join(bot("server audit").split()).count("arm-1 SHA256:") == 2
    journal = bot.home / "server" / "operations.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b"revoke", b"enroll"))
    assert "it was changed" in bot.fails("server audit", code=1)


@pytest.mark.parametrize("line", ["server init", "server enroll arm-1", "server start", "client start sim:lift-red"])
def test_a_home_that_cannot_be_written(bot: Bot, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc cannot be written by any user, as a read-only disk."""
    monkeypatch.setenv("ZK0_HOME", "/proc/nope")
    assert bot.fails(line).startswith("zk0: --home: /proc/nope/")


def test_a_kit_that_cannot_be_written_enrolls_nobody(bot: Bot) -> None:
    bot("server init")
    assert bot.fails("server enroll arm-1 --out /proc/arm-1.kit").startswith("zk0: --out: /proc cannot be written (")
    bot("server enroll arm-1")


def test_a_cache_that_cannot_be_written(bot: Bot) -> None:
    bot("server init")
    bot("server enroll arm-1")
    line = "client start sim:lift-red --kit arm-1.kit --cache /proc/nope"
    assert bot.fails(line).startswith("zk0: --cache: /proc/nope cannot be made, because /proc cannot be written (")
    assert not (bot.home / "client").exists()


def test_logs_of_server_and_node(bot: Bot) -> None:
    assert "so there is no log" in bot.fails("logs")
    for file in ("server/logs/gateway.log", "server/logs/supervisor.log", "client/logs/supervisor.log"):
        (bot.home / file).parent.mkdir(parents=True, exist_ok=True)
        (bot.home / file).write_text(f"first\n{file}\n")
    assert [line.split()[0] for line in bot("logs").splitlines()] == ["gateway", "supervisor", "supervisor"]
    assert bot("log -n 1") == "server/logs/gateway.log\n"
    assert "zk0bot client log supervisor" in bot.fails("log supervisor")
    (bot.home / "client/kit.json").touch()
    assert "client: no such log (it begins with the first session); there are: gateway" in bot.fails("log")
    (bot.home / "client/scratch").mkdir()
    (bot.home / "client/scratch/client.log").write_text("trained\n")
    assert bot("log") == bot("client log") == "trained\n"


def test_the_watcher_shows_after_each_check_that_it_lives(tmp_path: Path) -> None:
    """Probes of containers look at the file's age."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.bot.server_command import server_folder
    from flows.bot.session_trigger import SessionTrigger, check_forever
    from zk0.federation.network.start_rule import StartRule
    from zk0.settings.loading import parse_session

    class Stopped(Exception):
        pass

    def stop(line: str) -> None:
        raise Stopped(line)

    server = server_folder(tmp_path)
    server.path.mkdir()
    session = parse_session(
        {"evaluation": {"datasets": [{"dataset": "local:e"}]}, "federation": {"engine": "deployment"}}, "x"
    )
    trigger = SessionTrigger(server, StartRule(min_nodes=2, cooldown_seconds=60), session, {})
    closed = temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"})
    with closed, pytest.raises(Stopped):
        check_forever(trigger, 60, stop)
    assert (server.path / "watch.alive").is_file()
