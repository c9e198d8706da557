"""Faults of a federation over the network: nothing is trained twice, and rounds go on or are retried."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from zk0.errors import FederationError, RunEnded
from zk0.settings.session import Session

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LONG = {"local_steps": 150, "log_every_steps": 10}


@pytest.fixture(scope="module")
def deployment(deploy: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    started = deploy(tmp_path_factory.mktemp("deployment"))
    yield started
    started.stop()


class Driven:
    """A session over the network that is named after its test, so that its log lines can be found."""

    def __init__(self, deployment: Any, driven: Any, federation: Any) -> None:
        self.deployment, self.driven, self.federation = deployment, driven, federation
        self.found: Any = None
        self.began = {name: len(self.log(name)) for name in deployment.nodes}

    def log(self, name: str) -> str:
        file = self.deployment.nodes[name].path / "scratch" / "client.log"
        return file.read_text() if file.is_file() else ""

    def logged(self, name: str, text: str) -> int:
        """How often a text is in a client's log since this session began."""
        return self.log(name)[self.began[name] :].count(text)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Start the next round; the block begins when both clients train, and its end waits for the round."""

        def work() -> None:
            try:
                self.found = self.driven.train(self.federation)
            except Exception as e:
                self.found = e

        self.began = {name: len(self.log(name)) for name in self.deployment.nodes}
        thread = threading.Thread(target=work)
        thread.start()
        wait_until(lambda: all(self.logged(name, "step 20/150") for name in "ab"))
        yield
        thread.join(600)
        assert not thread.is_alive()

    def updates(self) -> list[str]:
        """Clients of the accepted updates."""
        assert not isinstance(self.found, Exception), self.found
        return [u.client for u in self.found.updates]

    def trained_once(self) -> bool:
        return all(self.logged(name, "step 20/150") == self.logged(name, "step 150/150") == 1 for name in "ab")


MODES = ["synchronous", "buffered"]
"""Of rounds; a buffered round takes the updates of all clients, and ends with the weights of a synchronous one."""
only_synchronous = pytest.mark.parametrize("running", MODES[:1], indirect=True)


@pytest.fixture(params=MODES)
def running(
    deployment: Any, drive: type, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Driven]]:
    from zk0.federation.open import open_federation

    opened = []

    def begin(**settings: Any) -> Driven:
        session = deployment.session(training=LONG, federation={"mode": request.param, **settings})
        name = re.sub(r"\W+", "-", request.node.name).strip("-")
        context = open_federation(session, name, tmp_path / "session")
        federation = context.__enter__()
        opened.append(context)
        driven = drive(session, tmp_path / "session", name)
        driven.begin(federation)
        return Driven(deployment, driven, federation)

    yield begin
    for context in opened:
        context.__exit__(None, None, None)


def local_digests(session_of: Callable[..., Session], drive: type, folder: Path, name: str, rounds: int) -> list[str]:
    from zk0.federation.open import open_federation

    session = session_of(("a", "b"), training=LONG)
    driven = drive(session, folder, name)
    with open_federation(session, f"{name}-local", folder) as federation:
        driven.begin(federation)
        for _ in range(rounds):
            driven.average(driven.train(federation).updates)
    return [c.digest for c in driven.history]


class TestSuperLink:
    def test_a_kill_between_or_within_rounds_loses_nothing(
        self, running: Callable[..., Driven], deployment: Any, session_of: Any, drive: type, tmp_path: Path
    ) -> None:
        session = running()
        server = deployment.server
        starts = server.supervised.state().processes["superlink"].starts
        os.kill(deployment.pid(server, "superlink"), signal.SIGKILL)
        with session.training():
            os.kill(deployment.pid(server, "superlink"), signal.SIGKILL)
        assert session.updates() == ["a", "b"]
        assert session.trained_once()
        session.driven.average(session.found.updates)
        assert server.supervised.state().processes["superlink"].starts == starts + 2
        name = session.driven.name
        wanted = local_digests(session_of, drive, tmp_path / "local", name, 1)
        assert [c.digest for c in session.driven.history] == wanted

    def test_a_kill_of_the_gateway_within_a_round_loses_nothing(
        self, running: Callable[..., Driven], deployment: Any
    ) -> None:
        session = running()
        with session.training():
            os.kill(deployment.pid(deployment.server, "gateway"), signal.SIGKILL)
        assert session.updates() == ["a", "b"]
        assert session.trained_once()

    def test_a_stopped_run_ends_its_round_only(self, running: Callable[..., Driven], deployment: Any) -> None:
        from zk0.federation.flower.flower_run import stop_run

        session = running()
        with session.training():
            stop_run(deployment.server.endpoint(), session.federation._grid._runs[0].task.run_id)
        assert isinstance(session.found, RunEnded)
        found = session.driven.train(session.federation)
        assert [u.client for u in found.updates] == ["a", "b"]
        assert session.trained_once()


class TestNodes:
    def test_a_killed_supernode_gets_the_request_again(self, running: Callable[..., Driven], deployment: Any) -> None:
        session, node = running(), deployment.nodes["a"]
        with session.training():
            os.kill(deployment.pid(node, "supernode"), signal.SIGKILL)
        assert session.updates() == ["a", "b"]
        assert session.trained_once()
        assert node.supervised.state().processes["supernode"].starts > 2  # rejected until the first one times out
        assert "305" in node.supervised.log("supernode").read_text()

    def test_a_worker_that_is_killed_costs_one_answer(
        self, running: Callable[..., Driven], deployment: Any, workers: Callable[[], dict[int, int]]
    ) -> None:
        session = running()
        agent = deployment.pid(deployment.nodes["a"], "agent")
        with session.training():
            os.kill(next(pid for pid, parent in workers().items() if parent == agent), signal.SIGKILL)
        assert session.updates() == ["b"]
        assert [(r.client, r.reason) for r in session.found.refusals] == [("a", "its process ended; see worker-0.log")]
        again = session.driven.train(session.federation)
        assert [u.client for u in again.updates] == ["a", "b"]
        assert session.logged("b", "step 150/150") == 1

    def test_a_worker_that_misses_the_timeout_answers_the_next_attempt(
        self, running: Callable[..., Driven], deployment: Any, workers: Callable[[], dict[int, int]]
    ) -> None:
        session = running(round_timeout_seconds=90)
        agent = deployment.pid(deployment.nodes["a"], "agent")
        server = next(pid for pid, parent in workers().items() if parent == agent)
        with session.training():
            worker = next(pid for pid, parent in workers().items() if parent == server)
            os.kill(worker, signal.SIGSTOP)
        os.kill(worker, signal.SIGCONT)
        assert session.updates() == ["b"]
        assert [(r.client, r.reason) for r in session.found.refusals] == [("a", "no answer within 90 s")]
        again = session.driven.train(session.federation)
        assert [u.client for u in again.updates] == ["a", "b"]
        assert session.trained_once()

    def test_a_client_that_raises(self, running: Callable[..., Driven], deployment: Any) -> None:
        """A file is in the place of the folder of its updates: it trains and cannot store the update."""
        session, updates = running(), deployment.nodes["a"].path / "scratch" / "sessions"
        shutil.rmtree(updates, ignore_errors=True)
        updates.touch()
        found = session.driven.train(session.federation)
        updates.unlink()
        assert [u.client for u in found.updates] == ["b"]
        ((client, reason),) = [(r.client, r.reason) for r in found.refusals]
        assert client == "a"
        assert re.fullmatch(r"NotADirectoryError: .*updates.*; see the client's log", reason)
        again = session.driven.train(session.federation)
        assert [u.client for u in again.updates] == ["a", "b"]
        assert session.logged("b", "step 150/150") == 1

    def test_a_killed_agent_trains_again(self, running: Callable[..., Driven], deployment: Any) -> None:
        session = running()
        with session.training():
            os.kill(deployment.pid(deployment.nodes["a"], "agent"), signal.SIGKILL)
        assert session.updates() == ["a", "b"]
        assert [session.logged(name, "step 20/150") for name in "ab"] == [2, 1]
        assert [session.logged(name, "step 150/150") for name in "ab"] == [1, 1]

    def test_a_round_goes_on_without_an_absent_node_which_returns(
        self, running: Callable[..., Driven], deployment: Any, shared_cache: Path, recordings: dict[str, Path]
    ) -> None:
        from zk0.settings.dataset_settings import ClientSettings

        session, node = running(absence_seconds=3, min_updates=1), deployment.nodes["a"]
        node.stop()
        found = session.driven.train(session.federation)
        assert [u.client for u in found.updates] == ["b"]
        assert [r.client for r in found.refusals] == ["a"]
        assert re.fullmatch(r"its node has been out of reach for \d+ s", found.refusals[0].reason)
        session.driven.average(found.updates)
        node.start(ClientSettings(name="a", dataset=f"local:{recordings['a']}"), shared_cache, detached=False)
        wait_until(lambda: "online" in [n.status for n in deployment.server.node_statuses() if n.name == "a"])
        found = session.driven.train(session.federation)
        assert [u.client for u in found.updates] == ["a", "b"]

    def test_a_client_that_may_not_take_part_gives_the_reason(
        self, deployment: Any, shared_cache: Path, recordings: dict[str, Path], drive: type, tmp_path: Path
    ) -> None:
        from zk0.federation.open import open_federation
        from zk0.settings.dataset_settings import ClientSettings

        node, session = deployment.nodes["a"], deployment.session(federation={"nodes": ["b", "a"]})
        node.stop()
        node.start(ClientSettings(name="a", dataset=f"local:{tmp_path}/nothing"), shared_cache, detached=False)
        try:
            with (
                open_federation(session, "missing", tmp_path / "s") as federation,
                pytest.raises(FederationError, match=r"1 of 2 clients cannot take part, 2 must: .*no LeRobot dataset"),
            ):
                drive(session, tmp_path / "s").begin(federation)
        finally:
            node.stop()
            node.start(ClientSettings(name="a", dataset=f"local:{recordings['a']}"), shared_cache, detached=False)
        wait_until(lambda: {n.status for n in deployment.server.node_statuses()} == {"online"})
        with open_federation(session, "back", tmp_path / "s") as federation:
            driven = drive(session, tmp_path / "s")
            driven.begin(federation)
        assert [m.client for m in driven.members] == ["b", "a"]


DRIVER = """
import pickle, sys
from pathlib import Path
from zk0.federation.open import open_federation
from zk0.settings.plans import session_terms
session, name, plans, weights, spool = pickle.loads(Path(sys.argv[1]).read_bytes())
with open_federation(session, name, Path(sys.argv[1]).parent) as federation:
    federation.join(session_terms(session, name))
    federation.train(plans, weights, spool)
"""


@only_synchronous
def test_a_killed_session_goes_on_with_the_updates_of_its_clients(
    running: Callable[..., Driven], deployment: Any, tmp_path: Path
) -> None:
    import pickle

    session = running()
    driven = session.driven
    pickled = (driven.session, driven.name, driven.plans(), Path(driven.history[-1].path), driven.spool())
    (tmp_path / "session" / "driver.pickle").write_bytes(pickle.dumps(pickled))
    session.began = {name: len(session.log(name)) for name in "ab"}
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "session" / "driver.pickle")]
    killed = subprocess.Popen(command)
    wait_until(lambda: all(session.logged(name, "step 20/150") for name in "ab"))
    killed.kill()
    killed.wait()
    found = driven.train(session.federation)
    assert [u.client for u in found.updates] == ["a", "b"]
    assert session.trained_once()


@only_synchronous
def test_a_run_that_no_session_has_acquired_is_stopped(running: Callable[..., Driven], deployment: Any) -> None:
    from flwr.proto.control_pb2 import ListRunsRequest, ListRunsResponse

    from zk0.federation.flower.api_client import ApiClient
    from zk0.federation.flower.flower_run import _app_bundle
    from zk0.federation.flower.private_api import START_RUN, ApiMethod, Fab

    with ApiClient(deployment.server.endpoint()) as api:
        orphan = api.call(START_RUN, fab=Fab(content=_app_bundle())).run_id
        session = running()
        runs = api.call(ApiMethod("/v1/control/list-runs", ListRunsRequest, ListRunsResponse)).run_dict
    assert (runs[orphan].status.status, runs[orphan].status.sub_status) == ("finished", "stopped")
    assert [m.client for m in session.driven.members] == ["a", "b"]


@pytest.mark.parametrize("mode", MODES)
def test_nodes_return_to_a_superlink_that_lost_its_memory(
    deploy: Callable[..., Any], drive: type, tmp_path: Path, mode: str
) -> None:
    """A restart registers the nodes again: they have other ids, and are identified by their names."""
    from zk0.federation.open import open_federation

    deployment = deploy(tmp_path, in_memory=True)
    try:
        session = deployment.session(federation={"absence_seconds": 200, "mode": mode})
        with open_federation(session, "in-memory", tmp_path / "session") as federation:
            driven = drive(session, tmp_path / "session", "in-memory")
            driven.begin(federation)
            before = {n.since for n in deployment.server.node_statuses()}
            os.kill(deployment.pid(deployment.server, "superlink"), signal.SIGKILL)
            found = driven.train(federation)
            assert [u.client for u in found.updates] == ["a", "b"]
        assert before.isdisjoint({n.since for n in deployment.server.node_statuses()})
        assert not (deployment.server.path / "superlink.db").exists()
    finally:
        deployment.stop()


class TestUnknownNodes:
    """Real SuperNodes that are not enrolled, or no longer."""

    def run_supernode(self, deployment: Any, tmp_path: Path, **changes: Any) -> tuple[int, str]:
        """Run a SuperNode like that of node `a`, with changes, until it ends; return its exit code and output."""
        from zk0.federation.network.flower_commands import free_port, supernode_process

        node = deployment.nodes["a"]
        options = {
            "ca_certificate": node.path / "ca.crt",
            "key": node.path / "node.key",
            "server": node.read_kit().server,
        } | changes
        spec = supernode_process(
            tmp_path / "home",
            options["server"],
            free_port(),
            options["ca_certificate"],
            options["key"],
            node.path / "secret",
        )
        command = [part for part in spec.command if part not in changes.get("without", ())]
        environment = {**os.environ, **spec.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, done.stdout + done.stderr

    def test_without_a_key(self, deployment: Any, tmp_path: Path) -> None:
        key = deployment.nodes["a"].path / "node.key"
        code, output = self.run_supernode(deployment, tmp_path, without=("--auth-supernode-private-key", str(key)))
        assert code != 0
        assert "305" in output
        assert len(deployment.server.node_statuses()) == 2

    def test_with_a_key_that_is_not_enrolled(self, deployment: Any, tmp_path: Path) -> None:
        from zk0.federation.network.certificate_authority import make_node_key

        (tmp_path / "key").write_bytes(make_node_key()[0])
        _, output = self.run_supernode(deployment, tmp_path, key=tmp_path / "key")
        assert "SuperNode ID" not in output  # what a SuperNode prints once it is admitted
        assert "a key that is not enrolled" in deployment.server.supervised.log("gateway").read_text()

    def test_with_another_authority(self, deployment: Any, tmp_path: Path) -> None:
        from zk0.federation.network.certificate_authority import CertificateAuthority

        CertificateAuthority(tmp_path).create()
        code, output = self.run_supernode(deployment, tmp_path, ca_certificate=tmp_path / "ca.crt")
        assert code != 0
        assert "certificate" in output.lower()

    def test_in_plain_text(self, deployment: Any, tmp_path: Path) -> None:
        node = deployment.nodes["a"]
        without = ("--root-certificates", str(node.path / "ca.crt"), "--auth-supernode-private-key")
        from zk0.federation.network.flower_commands import free_port, supernode_process

        key, secret = node.path / "node.key", node.path / "secret"
        spec = supernode_process(
            tmp_path / "home", node.read_kit().server, free_port(), node.path / "ca.crt", key, secret
        )
        command = [part for part in spec.command if part not in (*without, str(key))] + ["--insecure"]
        environment = {**os.environ, **spec.environment}
        command += ["--max-retries", "1"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode != 0
        assert len(deployment.server.node_statuses()) == 2

    def test_a_revoked_node_is_rejected_until_it_has_another_kit(
        self, running: Callable[..., Driven], deployment: Any, shared_cache: Path, recordings: dict[str, Path]
    ) -> None:
        from zk0.settings.dataset_settings import ClientSettings

        session, node = running(absence_seconds=3, min_updates=1), deployment.nodes["a"]
        deployment.server.revoke("a")
        wait_until(lambda: (status := node.supervised.state().processes["supernode"]).starts > 1 or status.pid is None)
        found = session.driven.train(session.federation)
        assert [u.client for u in found.updates] == ["b"]
        assert [n.name for n in deployment.server.node_statuses()] == ["b"]
        node.stop()
        node.install_kit(deployment.server.enroll("a"))
        node.start(ClientSettings(name="a", dataset=f"local:{recordings['a']}"), shared_cache, detached=False)
        wait_until(lambda: {n.status for n in deployment.server.node_statuses()} == {"online"})
