"""A federation over the network: `zk0bot` with its own home for the server and each node, and a real Prefect server."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from typer.testing import CliRunner

from flows.cli.main import zk0_app
from zk0.audit.ledger import Ledger

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parents[2]
PRIVATE = "private-folder-name"
"""Folder of the recordings: its name must not be sent from a node."""
SMALL_SESSION: dict[str, Any] = {
    "rounds": 3,
    "checkpoint_interval": 0,
    "training.local_steps": 60,
    "training.batch_size": 8,
    "training.log_every_steps": 10,
    "training.lr": 2e-3,
    "federation.workers": 1,
    "evaluation.times": 2,
}


class Machine:
    """`zk0bot` with its own home and cache, as on a machine of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.home = folder
        self.environment = {**os.environ, **environment, "ZK0_HOME": str(folder), "HOME": str(folder)}
        folder.mkdir(parents=True)

    def __call__(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "flows.bot.main", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def log(self) -> str:
        """Return the log of its client so far."""
        file = self.home / "client" / "scratch" / "client.log"
        return file.read_text() if file.is_file() else ""

    def kill(self) -> None:
        """Kill all of its processes, as a power cut does."""
        state = json.loads((self.home / "client" / "state.json").read_text())
        os.kill(state["pid"], signal.SIGKILL)  # the kernel then kills the supervised processes


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[dict[str, Machine]]:
    found = {name: Machine(tmp_path / name) for name in ("server", "a", "b", "c")}
    yield found
    for machine in (*list(found.values())[1:], found["server"]):
        machine("stop")


def small_session(tmp_path: Path, name: str, **more: Any) -> dict[str, Any]:
    sets = [{"dataset": f"local:{tmp_path / 'unseen'}"}]
    places = {"output_dir": str(tmp_path / name), "cache_dir": str(tmp_path / "cache"), "evaluation.datasets": sets}
    return {**SMALL_SESSION, **places, **more}


def start_session(local_prefect: Any, overrides: dict[str, Any]) -> UUID:
    parameters = {"config": "deployments/sessions/federation.toml", "overrides": overrides}
    return local_prefect.run_deployment("zk0/federated-session", parameters)


def ledger(folder: Path) -> list[Any]:
    (session,) = folder.iterdir()
    return Ledger(session / "ledger.jsonl").read()


def test_killed_and_late_nodes_and_no_secret_is_disclosed(
    new_local_prefect: Any,
    machines: dict[str, Machine],
    record: Any,
    hub_server: Any,
    tmp_path: Path,
    wait_until: Callable,
) -> None:
    data = {n: record(tmp_path / PRIVATE / n, seed, (12, 15, 13)) for seed, n in enumerate("abc")}
    record(tmp_path / "unseen", 9, (13, 12))
    secrets = {"WANDB_API_KEY": "5ec2e7" * 7, "HF_TOKEN": hub_server.token}
    outside = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub_server.url, "HF_HUB_DISABLE_XET": "1"}
    new_local_prefect.environment |= secrets | outside
    new_local_prefect.start()
    server = machines["server"]
    server("server", "init", "--port", str(free_port()))

    def join(name: str, *kit: str) -> None:
        machines[name]("client", "start", f"local:{data[name]}", *kit)

    def enroll(name: str) -> None:
        kit = str(tmp_path / f"{name}.kit")
        server("server", "enroll", name, "--out", kit)
        join(name, "--kit", kit)

    def online(name: str) -> bool:
        return re.search(rf"node {name} +online", server("server", "status")) is not None

    server("server", "start")
    for name in "ab":
        enroll(name)
    wait_until(lambda: online("a") and online("b"), pause=3)  # each look is a command that imports for a second
    settings = {"federation.server": str(server.home / "server"), "tracking.wandb": "offline"}
    settings |= {"publish.repo_id": "lab/arm", "publish.min_rounds": 3}
    run = start_session(new_local_prefect, small_session(tmp_path, "network", **settings))
    wait_until(lambda: all("round 1 step 20/60" in machines[n].log for n in "ab"), pause=0.02)
    machines["a"].kill()
    enroll("c")
    wait_until(lambda: online("c"), pause=3)
    join("a")
    assert new_local_prefect.final_state(run).is_completed(), new_local_prefect.state(run).message

    history = ledger(tmp_path / "network")
    assert [[u.client for u in r.updates] for r in history] == [[], ["a", "b"], ["a", "b", "c"], ["a", "b", "c"]]
    assert [r.refusals for r in history] == 4 * [()]
    for name in "abc":
        lines = " ".join(machines[name]("client", "audit").split())
        updates = len(history) - (2 if name == "c" else 1)
        counts = re.search(r"the server lists (\d+) of \d+ updates, (\d+) of them under a root", lines)
        assert counts, lines
        assert counts[1] == counts[2], lines
        # A node killed after it noted its answer, and before the server had it, sends the same update again.
        assert int(counts[1]) - updates in ((0, 1) if name == "a" else (0,)), lines
        assert re.search(r"4 heads, ledger of 4 lines, 0 of \d+ without a head", lines), lines
        assert "they contradict each other nowhere" in lines
        assert re.search(r"\d+ heads came with \d+ requests; none contradicts", lines), lines
    assert machines["b"].log.count("round 1 step 60/60") == 1
    lines = " ".join(server("server", "audit").split())
    assert re.search(r"hash chain and signatures are valid .*; (\d+) of (\d+) answers were accepted", lines), lines
    for name in "abc":
        assert re.search(rf"journal of {name}: \d+ heads came with its answers; none contradicts", lines), lines
    (folder,) = (tmp_path / "network").iterdir()
    audited = CliRunner().invoke(zk0_app, ["audit", str(folder)])
    assert (audited.exit_code, audited.output.count("signed by the key")) == (0, 1), audited.output
    release = json.loads(next((tmp_path / "network").glob("*/release.json")).read_text())
    assert release["repo_id"] == "lab/arm"  # so the session asked for the token at its start
    assert list((tmp_path / "network").glob("*/wandb/offline-run-*"))

    keys = {f"key of {n}": kit_key(machines[n].home / "client" / "kit.json") for n in "abc"}
    with new_local_prefect.client() as client:
        flow_run = client.read_flow_run(run)
        mine = {"logs": {"flow_run_id": {"any_": [str(run)]}}, "limit": 200}
        lines = client.request("POST", "/logs/filter", json=mine).text
    texts = {"parameters": json.dumps([flow_run.parameters, flow_run.job_variables], default=str), "log lines": lines}
    places = [tmp_path / "network", server.home, new_local_prefect.home]
    places = [f for place in places for f in place.rglob("*") if f.is_file() and not is_elsewhere(f, tmp_path)]
    files = {str(file): file.read_bytes() for file in places}
    assert any(PRIVATE.encode() in text for text in machines["a"].home.rglob("*.json") for text in [text.read_bytes()])
    found = files | {name: text.encode() for name, text in texts.items()}
    for what, secret in {**secrets, **keys}.items():
        assert [name for name, text in found.items() if secret.encode() in text] == [], what
    server_side = {n: t for n, t in files.items() if Path(n).is_relative_to(tmp_path / "network")}
    server_side |= {n: t for n, t in files.items() if Path(n).is_relative_to(server.home)}
    assert [name for name, text in server_side.items() if PRIVATE.encode() in text] == []
    assert [name for name, text in texts.items() if PRIVATE in text] == []


def is_elsewhere(file: Path, tmp_path: Path) -> bool:
    """Return whether a file belongs to a node or is a recording; in this test all are below the same folder."""
    parts = file.relative_to(tmp_path).parts
    return parts[0] in {"a", "b", "c", PRIVATE, "cache", "unseen"} or file.suffix == ".kit"


def kit_key(kit: Path) -> str:
    """Return a line from the middle of a node's private key."""
    return str(json.loads(kit.read_text())["key"]).splitlines()[3]


def free_port() -> int:
    from zk0.federation.network.flower_commands import free_port as free

    return free()


def test_online_nodes_start_a_session_automatically(
    new_local_prefect: Any, machines: dict[str, Machine], record: Any, tmp_path: Path, wait_until: Callable
) -> None:
    data = {n: record(tmp_path / PRIVATE / n, seed, (12, 15, 13)) for seed, n in enumerate("ab")}
    record(tmp_path / "unseen", 9, (13, 12))
    new_local_prefect.start()
    server = machines["server"]
    server("server", "init", "--port", str(free_port()))
    server("server", "start")
    server("server", "enroll", "away", "--out", str(tmp_path / "away.kit"))
    named = {"federation.nodes": ["a", "away", "b"], "federation.absence_seconds": 1}
    small = small_session(tmp_path, "started", **{"rounds": 1, "training.local_steps": 32, **named})
    settings = [word for name, value in small.items() for word in ("--set", f"{name}={toml(value)}")]
    out = tmp_path / "watch.log"
    with out.open("wb") as file:
        command = [sys.executable, "-m", "flows.bot.main", "watch", "--every", "0.5", *settings]
        environment = server.environment | {
            "PREFECT_API_URL": new_local_prefect.api_url,
            "PREFECT_API_AUTH_STRING": new_local_prefect.api_key(),
        }
        watching = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
    try:
        wait_until(lambda: "idle: 0 of 2 nodes connected" in out.read_text())
        now = datetime.now()
        never = f"{now + timedelta(hours=2):%H:%M}-{now + timedelta(hours=3):%H:%M}"
        for name, hours in (("a", ()), ("b", ("--hours", never))):
            kit = str(tmp_path / f"{name}.kit")
            server("server", "enroll", name, "--out", kit)
            machines[name]("client", "start", f"local:{data[name]}", "--kit", kit, *hours)
        wait_until(lambda: "idle: 1 of 2 nodes connected (a)" in out.read_text())
        assert "paused since" in machines["b"]("client", "status")
        machines["b"]("client", "stop")
        machines["b"]("client", "start", f"local:{data['b']}")
        wait_until(lambda: "session started as" in out.read_text())
        run = UUID(re.search(r"session started as (\S+): 2 nodes connected \(a, b\)", out.read_text()).group(1))
        assert new_local_prefect.final_state(run).is_completed(), new_local_prefect.state(run).message
        wait_until(lambda: "idle: no new node (a, b); the cooldown ends in" in out.read_text())
    finally:
        watching.terminate()
        watching.wait(30)
    assert [[u.client for u in r.updates] for r in ledger(tmp_path / "started")] == [[], ["a", "b"]]
    assert out.read_text().count("session started") == 1
    (folder,) = (tmp_path / "started").iterdir()
    assert "does not take part: away: its node is not connected" in (folder / "simulation.log").read_text()
    with new_local_prefect.client() as client:
        assert [r.id for r in client.read_flow_runs() if "watch" in r.tags] == [run]


def toml(value: Any) -> str:
    """Return a setting as it is typed on the command line."""
    if isinstance(value, list):
        return f"[{', '.join(f'"{one}"' if isinstance(one, str) else toml(one) for one in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f'{k}="{v}"' for k, v in value.items()) + "}"
    return str(value)
