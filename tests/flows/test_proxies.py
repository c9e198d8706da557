"""Proxy variables of a company network do not come between zk0 and the servers that it starts on this machine."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from zk0.errors import SettingsError

ROOT = Path(__file__).parents[2]
DEAD = "http://127.0.0.1:9"
REQUESTS = """
import json, sys, urllib.request
import httpx, requests
from typer.testing import CliRunner
from importlib import import_module

def reached(get):
    try:
        return get() == 200
    except (OSError, httpx.HTTPError):
        return False

url, module, app = sys.argv[1:]
gets = (
    lambda: urllib.request.urlopen(url, timeout=5).status,
    lambda: httpx.get(url, timeout=5).status_code,
    lambda: requests.get(url, timeout=5).status_code,
)
before = [reached(get) for get in gets]
CliRunner().invoke(getattr(import_module(module), app), ["data", "list"] if app == "zk0_app" else ["client", "status"])
print(json.dumps([before, [reached(get) for get in gets]]))
"""


@pytest.fixture(params=["127.0.0.1", "localhost"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server on loopback."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{request.param}:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize(("module", "app"), [("flows.cli.main", "zk0_app"), ("flows.bot.main", "zk0bot_app")])
def test_each_command_reaches_servers_of_this_machine(url: str, module: str, app: str, tmp_path: Path) -> None:
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"), DEAD)
    kept = {k: v for k, v in os.environ.items() if k.lower() != "no_proxy"}
    environment = {**kept, **proxies, "NO_PROXY": "intern.example", "ZK0_HOME": str(tmp_path)}
    command = [sys.executable, "-c", REQUESTS, url, module, app]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[False] * 3, [True] * 3]


def without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove every proxy variable, and restore at the end of the test what it sets."""
    names = {name for name in os.environ if name.lower().endswith("_proxy")}
    for spelling in (*names, "NO_PROXY", "no_proxy", "no_grpc_proxy"):
        monkeypatch.setenv(spelling, "")
        monkeypatch.delenv(spelling)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"NO_PROXY": "a"}, {"NO_PROXY": "a"}),
        ({"https_proxy": DEAD}, "localhost,127.0.0.1,::1"),
        ({"ALL_PROXY": DEAD, "NO_PROXY": "a, b"}, "a,b,localhost,127.0.0.1,::1"),
        ({"HTTP_PROXY": DEAD, "no_proxy": "b,127.0.0.1", "NO_PROXY": "a"}, "a,b,127.0.0.1,localhost,::1"),
        ({"grpc_proxy": DEAD}, "localhost,127.0.0.1,::1"),
        ({"http_proxy": DEAD, "NO_PROXY": "*"}, "*"),
        ({"socks_proxy": DEAD}, "localhost,127.0.0.1,::1"),
        ({"wss_proxy": DEAD}, "localhost,127.0.0.1,::1"),
        ({"Http_Proxy": DEAD}, "localhost,127.0.0.1,::1"),
        ({"no_grpc_proxy": "a"}, {}),
    ],
)
def test_hosts_that_go_past_a_proxy(
    given: dict[str, str], expected: dict[str, str] | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.proxies import exempt_loopback_from_proxies

    without_proxies(monkeypatch)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    exempt_loopback_from_proxies()
    found = {name: os.environ[name] for name in ("NO_PROXY", "no_proxy") if name in os.environ}
    assert found == ({"NO_PROXY": expected, "no_proxy": expected} if isinstance(expected, str) else expected)


@pytest.mark.parametrize("variables", [{"grpc_proxy": DEAD}, {"http_proxy": DEAD, "no_grpc_proxy": "intern.example"}])
def test_grpc_reaches_a_server_of_this_machine(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's processes talk gRPC, which reads variables of its own."""
    import grpc

    from flows.proxies import exempt_loopback_from_proxies

    def reached() -> bool:
        with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            try:
                grpc.channel_ready_future(channel).result(timeout=5)
            except grpc.FutureTimeoutError:
                return False
            return True

    without_proxies(monkeypatch)
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before = reached()
    exempt_loopback_from_proxies()
    assert (before, reached()) == (False, True)
    server.stop(None).wait()


@pytest.mark.parametrize("name", ["socks_proxy", "ws_proxy", "Http_Proxy"])
def test_websockets_reach_a_server_of_this_machine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's events go by websockets, which take the proxy of any scheme that Python knows."""
    from websockets.proxy import get_proxy
    from websockets.uri import parse_uri

    from flows.proxies import exempt_loopback_from_proxies

    without_proxies(monkeypatch)
    monkeypatch.setenv(name, DEAD)
    exempt_loopback_from_proxies()
    assert get_proxy(parse_uri("ws://127.0.0.1:4200/api/events/in")) is None


def test_a_worker_starts_the_flow_without_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.federated_session import federated_session

    without_proxies(monkeypatch)
    monkeypatch.setenv("HTTP_PROXY", DEAD)
    with pytest.raises(SettingsError):
        federated_session.fn("missing.toml")
    assert os.environ["no_proxy"] == "localhost,127.0.0.1,::1"
