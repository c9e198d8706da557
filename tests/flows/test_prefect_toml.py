"""While `zk0 ui` runs, `prefect` in the same folder finds its server by prefect.toml; and the choice of a port."""

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.prefect_local.api_key import api_key_file, read_or_make_api_key
from flows.prefect_local.ports import choose_port
from flows.prefect_local.prefect_process import CommandEnvironment
from flows.prefect_local.prefect_server import PrefectServer
from flows.prefect_local.prefect_toml import prefect_toml_written, remove_stale_prefect_toml
from flows.prefect_local.temporary_server import server_environment, server_on_port
from zk0.errors import SettingsError


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def configured_url(folder: Path) -> str:
    code = "from prefect.settings import PREFECT_API_URL; print(PREFECT_API_URL.value())"
    outside = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=folder, env={**outside, "PREFECT_HOME": str(folder)}, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def test_prefect_finds_the_server_while_the_file_exists(tmp_path: Path) -> None:
    with prefect_toml_written(tmp_path, "http://127.0.0.1:4321/api") as written:
        assert written
        assert configured_url(tmp_path) == "http://127.0.0.1:4321/api"
    assert configured_url(tmp_path) == "None"
    assert not list(tmp_path.glob("prefect.toml*"))


def test_the_file_holds_the_key_for_its_owner_only(tmp_path: Path) -> None:
    with prefect_toml_written(tmp_path, "http://127.0.0.1:4321/api", "zk0:secret"):
        file = tmp_path / "prefect.toml"
        assert 'auth_string = "zk0:secret"' in file.read_text(encoding="utf-8")
        assert file.stat().st_mode & 0o777 == 0o600


def test_the_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    key = read_or_make_api_key(tmp_path)
    assert len(key) > 40
    assert read_or_make_api_key(tmp_path) == key
    assert read_or_make_api_key(tmp_path / "other") != key
    assert api_key_file(tmp_path).stat().st_mode & 0o777 == 0o600
    api_key_file(tmp_path).chmod(0o644)
    with pytest.raises(SettingsError, match="other users can read it"):
        read_or_make_api_key(tmp_path)


def test_a_file_of_another_author_stays(tmp_path: Path) -> None:
    file = tmp_path / "prefect.toml"
    file.write_text('[api]\nurl = "http://10.0.0.1:4200/api"\n', encoding="utf-8")
    with prefect_toml_written(tmp_path, "http://127.0.0.1:4321/api") as written:
        assert not written
        remove_stale_prefect_toml(tmp_path)
    assert file.read_text(encoding="utf-8") == '[api]\nurl = "http://10.0.0.1:4200/api"\n'


def test_a_stale_file_is_removed(tmp_path: Path) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with prefect_toml_written(tmp_path, f"http://127.0.0.1:{server.server_port}/api"):
            content = (tmp_path / "prefect.toml").read_bytes()
        (tmp_path / "prefect.toml").write_bytes(content)  # as after a power cut
        remove_stale_prefect_toml(tmp_path)
        assert (tmp_path / "prefect.toml").read_bytes() == content, "the server responds"
        server.shutdown()
    remove_stale_prefect_toml(tmp_path)
    assert not (tmp_path / "prefect.toml").exists()
    remove_stale_prefect_toml(tmp_path)


def test_a_wanted_port_that_is_taken(taken_port: int) -> None:
    with pytest.raises(
        SettingsError,
        match=f"port {taken_port} on 127.0.0.1 is in use by process {os.getpid()} .*; stop that, or.* --port",
    ):
        choose_port(taken_port)


def test_the_default_port_or_a_free_one(taken_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.prefect_local.ports.DEFAULT_PORT", taken_port)
    found = choose_port(None)
    assert found != taken_port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", found))


def test_not_in_a_clone(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", "ui", "--home", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert (
        done.stderr == f"zk0: {tmp_path}: no prefect.yaml; expected the root of a zk0 clone or a folder of `zk0 init`\n"
    )


class _AnotherServer(http.server.BaseHTTPRequestHandler):
    """A Prefect server of someone else: it is healthy, and requires another key."""

    def do_GET(self) -> None:
        healthy = self.path == "/api/health"
        self.send_response(200 if healthy else 401)
        self.end_headers()
        self.wfile.write(b"true" if healthy else b"Unauthorized")

    def log_message(self, *_: object) -> None:
        pass


def start_losing_the_port(home: Path, wanted: int | None, given_back: bool = False) -> list[int]:
    """Start a server whose port another one takes at the same moment; return the ports that were tried.

    With `given_back`, the other one ends as soon as this server has found the port taken.
    """
    tried, rivals = [], []
    log = home / "server.log"

    def give_back() -> None:
        while not log.is_file() or "already in use" not in " ".join(log.read_text().split()):
            time.sleep(0.01)
        rivals[0].shutdown()
        rivals[0].server_close()

    def take_first_port(server: PrefectServer) -> None:
        tried.append(int(server.url.rpartition(":")[2]))
        if len(tried) == 1:
            rivals.append(http.server.ThreadingHTTPServer(("127.0.0.1", tried[0]), _AnotherServer))
            threading.Thread(target=rivals[0].serve_forever, daemon=True).start()
            if given_back:
                threading.Thread(target=give_back, daemon=True).start()

    def environment_of(port: int) -> CommandEnvironment:
        return CommandEnvironment(home, server_environment(home, port, "zk0:secret"), home)

    try:
        with server_on_port(wanted, "zk0:secret", environment_of, take_first_port) as running:
            assert running.server.healthy()
            assert running.server.url.endswith(f":{tried[-1]}")
    finally:
        rivals[0].shutdown()
        rivals[0].server_close()
    return tried


@pytest.mark.parametrize("given_back", [False, True])
def test_a_server_that_loses_its_port_at_the_last_moment_takes_another(tmp_path: Path, given_back: bool) -> None:
    first, second = start_losing_the_port(tmp_path, 0, given_back)
    assert given_back or first != second


def test_a_given_port_that_is_lost_at_the_last_moment_is_named(tmp_path: Path) -> None:
    port = choose_port(0)
    with pytest.raises(SettingsError, match=rf"port {port} on 127.0.0.1 is in use by process {os.getpid()} "):
        start_losing_the_port(tmp_path, port)
