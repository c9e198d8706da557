"""A page in the operator's browser, and a name that leads to loopback, cannot use the Prefect server of `zk0 ui`."""

import http.client
import http.server
import json
import shutil
import subprocess
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.prefect_local.own_origin import SIGN_IN
from flows.prefect_local.prefect_server import PrefectServer

CHROMIUM = shutil.which("chromium")


def port_of(prefect: Any) -> int:
    return int(prefect.api_url.split(":")[2].split("/")[0])


def answer(prefect: Any, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str, dict[str, str]]:
    """The answer to one request: status, text and headers."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(prefect), timeout=30)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, None if body is None else json.dumps(body), sent)
    found = connection.getresponse()
    return found.status, found.read().decode(), {k.lower(): v for k, v in found.getheaders()}


def key_header(prefect: Any) -> str:
    return f"Basic {b64encode(prefect.api_key().encode()).decode()}"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "{port}", ""])
def test_another_host_is_refused(local_prefect: Any, host: str) -> None:
    named = host.format(port=port_of(local_prefect))
    for path in ("/", "/api/health", "/api/admin/version", SIGN_IN):
        status, _, _ = answer(local_prefect, "GET", path, Host=named, Authorization=key_header(local_prefect))
        assert status == 403, path


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1:{port}"])
def test_another_origin_is_refused(local_prefect: Any, origin: str) -> None:
    named = origin.format(port=port_of(local_prefect))
    run = {"flow_id": "x", "job_variables": {"command": "touch /tmp/pwned"}}
    for method, path, body in (
        ("POST", "/api/deployments/x/create_flow_run", run),
        ("GET", "/api/admin/version", None),
    ):
        found = answer(local_prefect, method, path, body, Origin=named, Authorization=key_header(local_prefect))
        assert found[0] == 403
        assert "access-control-allow-origin" not in found[2]
    preflight = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization"}
    status, _, headers = answer(local_prefect, "OPTIONS", "/api/flows/", Origin=named, **preflight)
    assert status == 403
    assert "access-control-allow-origin" not in headers


def test_the_key_and_a_token_are_needed(local_prefect: Any) -> None:
    assert answer(local_prefect, "GET", "/api/health")[0] == 200
    assert answer(local_prefect, "GET", "/api/admin/version")[0] == 401
    assert answer(local_prefect, "POST", "/api/flows/filter", {})[0] in (401, 403)
    wrong = f"Basic {b64encode(b'zk0:x').decode()}"
    assert answer(local_prefect, "GET", "/api/admin/version", Authorization=wrong)[0] == 401
    key = key_header(local_prefect)
    assert answer(local_prefect, "GET", "/api/admin/version", Authorization=key)[0] == 200
    status, text, _ = answer(local_prefect, "POST", "/api/flows/filter", {}, Authorization=key)
    assert (status, "CSRF" in text) == (403, True)
    assert PrefectServer(local_prefect.api_url.removesuffix("/api"), local_prefect.api_key())._request(
        "/flows/filter", {}
    )


@pytest.mark.parametrize(
    "variables",
    [
        {"command": "touch /tmp/pwned"},
        {"working_dir": "/tmp"},
        {"env": {"PYTHONPATH": "/tmp"}},
        {"env": {"CXX": "/tmp/x"}},
        *({"env": {name: "/tmp/x"}} for name in ("OPENSSL_CONF", "OPENSSL_MODULES", "GCONV_PATH", "RAY_ADDRESS")),
        *({"env": {name: "http://x"}} for name in ("HF_ENDPOINT", "HTTPS_PROXY", "WANDB_BASE_URL")),
        {"env": {"OMP_NUM_THREADS": "2", "A_NAME_OF_TOMORROW": "x"}},
        {"env.OPENSSL_CONF": "/tmp/x"},
        {"else": 1},
    ],
)
def test_a_flow_run_cannot_name_a_command(local_prefect: Any, variables: dict[str, Any]) -> None:
    from prefect.exceptions import PrefectHTTPStatusError

    with local_prefect.client() as client:
        deployment = client.read_deployment_by_name("zk0-intake/dataset-intake").id
        with pytest.raises(PrefectHTTPStatusError, match=r"job variables|Error creating flow run|validat"):
            client.create_flow_run_from_deployment(deployment, parameters={"uri": "x/y"}, job_variables=variables)


def test_a_flow_run_may_set_what_a_session_needs(local_prefect: Any) -> None:
    from prefect.states import Cancelled

    variables = {"env": {"OMP_NUM_THREADS": "2", "MUJOCO_GL": "egl", "HF_HUB_OFFLINE": "1"}}
    with local_prefect.client() as client:
        deployment = client.read_deployment_by_name("zk0-intake/dataset-intake").id
        made = client.create_flow_run_from_deployment(
            deployment, parameters={"uri": "x/y"}, job_variables=variables, state=Cancelled()
        )
    assert made.job_variables == variables


@pytest.fixture
def page(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder that is served by another origin, and its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    def handler(*arguments: Any) -> Quiet:
        return Quiet(*arguments, directory=str(tmp_path))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def shown(tmp_path: Path, address: str, *options: str) -> str:
    """What headless Chromium shows of a page, after its scripts."""
    assert CHROMIUM is not None
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--virtual-time-budget=8000")
    command = [CHROMIUM, *flags, profile, *options, "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser(local_prefect: Any, page: tuple[Path, str]) -> None:
    """A page of another origin gets nothing, a rebound name gets nothing, and the printed address opens the UI."""
    folder, address = page
    api, port = local_prefect.api_url, port_of(local_prefect)
    (folder / "evil.html").write_text(
        f"""<body><script>
        const json = {{method: "POST", headers: {{"content-type": "application/json"}}, body: "{{}}"}};
        const plain = {{method: "POST", mode: "no-cors", body: "{{}}"}};
        const tried = [["{api}/admin/version", {{}}], ["{api}/flows/filter", json], ["{api}/flows/filter", plain]];
        Promise.all(tried.map(([url, how]) => fetch(url, how).then(r => r.text(), e => "blocked")))
          .then(found => document.body.append("got:" + JSON.stringify(found)));
        </script>"""
    )
    assert 'got:["blocked","blocked",""]' in shown(folder, f"{address}/evil.html")
    rebound = shown(folder, f"http://evil.example:{port}/", "--host-resolver-rules=MAP evil.example 127.0.0.1")
    assert "this server is reached as" in rebound
    server = PrefectServer(api.removesuffix("/api"), local_prefect.api_key())
    locked, opened = shown(folder, f"{server.url}/dashboard"), shown(folder, server.sign_in_url)
    assert "Authentication failed" in locked
    assert "Work Pools" not in locked
    assert "Authentication failed" not in opened
    assert "Work Pools" in opened
