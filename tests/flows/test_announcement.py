"""While `zk0 ui` runs, `prefect` in the same folder finds its server, and only then."""

import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.announcement import announced, forget_stale
from flows.stack import choose_port
from zk0.errors import SettingsError


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def url_that_prefect_uses(folder: Path) -> str:
    look = "from prefect.settings import PREFECT_API_URL; print(PREFECT_API_URL.value())"
    outside = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    command = [sys.executable, "-c", look]
    done = subprocess.run(
        command, cwd=folder, env={**outside, "PREFECT_HOME": str(folder)}, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def test_prefect_finds_the_server_while_it_is_announced(tmp_path: Path) -> None:
    with announced(tmp_path, "http://127.0.0.1:4321/api") as found:
        assert found
        assert url_that_prefect_uses(tmp_path) == "http://127.0.0.1:4321/api"
    assert url_that_prefect_uses(tmp_path) == "None"
    assert not list(tmp_path.glob("prefect.toml*"))


def test_a_file_of_someone_else_stays(tmp_path: Path) -> None:
    file = tmp_path / "prefect.toml"
    file.write_text('[api]\nurl = "http://10.0.0.1:4200/api"\n', encoding="utf-8")
    with announced(tmp_path, "http://127.0.0.1:4321/api") as found:
        assert not found
        forget_stale(tmp_path)
    assert file.read_text(encoding="utf-8") == '[api]\nurl = "http://10.0.0.1:4200/api"\n'


def test_an_announcement_that_outlived_its_server_goes(tmp_path: Path) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with announced(tmp_path, f"http://127.0.0.1:{server.server_port}/api"):
            kept = (tmp_path / "prefect.toml").read_bytes()
        (tmp_path / "prefect.toml").write_bytes(kept)  # as a power cut leaves it
        forget_stale(tmp_path)
        assert (tmp_path / "prefect.toml").read_bytes() == kept, "somebody answers there"
        server.shutdown()
    forget_stale(tmp_path)
    assert not (tmp_path / "prefect.toml").exists()
    forget_stale(tmp_path)


def test_a_wanted_port_that_is_taken(taken_port: int) -> None:
    with pytest.raises(SettingsError, match=f"port {taken_port} on 127.0.0.1 is taken"):
        choose_port(taken_port)


def test_the_usual_port_or_a_free_one(taken_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.stack.USUAL_PORT", taken_port)
    found = choose_port(None)
    assert found != taken_port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", found))


def test_not_in_a_clone(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "ui", "--home", str(tmp_path)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == f"zk0: {tmp_path}: no prefect.yaml here; expected the root of a zk0 clone\n"
