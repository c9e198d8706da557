"""What a fault costs when clients are elsewhere: nothing is trained twice, and rounds go on or are retried."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from zk0.errors import CallRefused, FederationError
from zk0.session import Session

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LONG = {"local_steps": 150, "log_every_steps": 10}


@pytest.fixture(scope="module")
def deployment(deploy: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    started = deploy(tmp_path_factory.mktemp("deployment"))
    yield started
    started.stop()


def until(holds: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


class Driven:
    """A session over the network that a test drives, named after the test: its own log lines are told from others."""

    def __init__(self, deployment: Any, driven: Any, federation: Any) -> None:
        self.deployment, self.driven, self.federation = deployment, driven, federation
        self.found: Any = None
        self.began = {name: len(self.log(name)) for name in deployment.nodes}

    def log(self, name: str) -> str:
        file = self.deployment.nodes[name].path / "scratch" / "client.log"
        return file.read_text() if file.is_file() else ""

    def said(self, name: str, text: str) -> int:
        """How often a client's log has said something since this session began."""
        return self.log(name)[self.began[name] :].count(text)

    @contextmanager
    def training(self) -> Iterator[None]:
        """The next round, begun and well on its way in both clients; the block's end waits for it."""

        def work() -> None:
            try:
                self.found = self.driven.train(self.federation)
            except Exception as e:
                self.found = e

        self.began = {name: len(self.log(name)) for name in self.deployment.nodes}
        thread = threading.Thread(target=work)
        thread.start()
        until(lambda: all(self.said(name, "step 20/150") for name in "ab"))
        yield
        thread.join(600)
        assert not thread.is_alive()

    def updates(self) -> list[str]:
        """Who brought a good update."""
        assert not isinstance(self.found, Exception), self.found
        return [u.client for u in self.found.updates]

    def trained_once(self) -> bool:
        return all(self.said(name, "step 20/150") == self.said(name, "step 150/150") == 1 for name in "ab")


@pytest.fixture
def running(
    deployment: Any, drive: type, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Driven]]:
    from zk0.federation.open import open_federation

    opened = []

    def begin(**rules: Any) -> Driven:
        session = deployment.session(training=LONG, federation=rules)
        name = request.node.name
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
    def test_killed_between_and_within_rounds_it_is_not_noticed(
        self, running: Callable[..., Driven], deployment: Any, session_of: Any, drive: type, tmp_path: Path
    ) -> None:
        session = running()
        server = deployment.server
        os.kill(deployment.pid(server, "superlink"), signal.SIGKILL)
        with session.training():
            os.kill(deployment.pid(server, "superlink"), signal.SIGKILL)
        assert session.updates() == ["a", "b"]
        assert session.trained_once()
        session.driven.average(session.found.updates)
        assert server.kept.state().processes["superlink"].starts == 3
        name = session.driven.name
        wanted = local_digests(session_of, drive, tmp_path / "local", name, 1)
        assert [c.digest for c in session.driven.history] == wanted

    def test_the_gateway_killed_within_a_round_is_not_noticed(
        self, running: Callable[..., Driven], deployment: Any
    ) -> None:
        session = running()
        with session.training():
            os.kill(deployment.pid(deployment.server, "gateway"), signal.SIGKILL)
        assert session.updates() == ["a", "b"]
        assert session.trained_once()

    def test_a_run_that_is_stopped_ends_its_round_alone(self, running: Callable[..., Driven], deployment: Any) -> None:
        from zk0.federation.run import stop_run

        session = running()
        with session.training():
            stop_run(deployment.server.endpoint(), session.federation._grid._task.run_id)
        assert isinstance(session.found, CallRefused)
        found = session.driven.train(session.federation)
        assert [u.client for u in found.updates] == ["a", "b"]
        assert session.trained_once()


class TestNodes:
    def test_a_supernode_that_is_killed_is_asked_again(self, running: Callable[..., Driven], deployment: Any) -> None:
        session, node = running(), deployment.nodes["a"]
        with session.training():
            os.kill(deployment.pid(node, "supernode"), signal.SIGKILL)
        assert session.updates() == ["a", "b"]
        assert session.trained_once()
        assert node.kept.state().processes["supernode"].starts > 2  # refused until the first is given up
        assert "305" in node.kept.log("supernode").read_text()

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
        assert session.said("b", "step 150/150") == 1

    def test_a_worker_that_hangs_past_the_timeout_is_left_out_and_answers_later(
        self, running: Callable[..., Driven], deployment: Any, workers: Callable[[], dict[int, int]]
    ) -> None:
        session = running(round_timeout_seconds=60)
        agent = deployment.pid(deployment.nodes["a"], "agent")
        server = next(pid for pid, parent in workers().items() if parent == agent)
        with session.training():
            worker = next(pid for pid, parent in workers().items() if parent == server)
            os.kill(worker, signal.SIGSTOP)
        os.kill(worker, signal.SIGCONT)
        assert session.updates() == ["b"]
        assert [(r.client, r.reason) for r in session.found.refusals] == [("a", "no answer within 60 s")]
        again = session.driven.train(session.federation)
        assert [u.client for u in again.updates] == ["a", "b"]
        assert session.trained_once()

    def test_a_client_that_raises(self, running: Callable[..., Driven], deployment: Any) -> None:
        """Where its updates belong lies a file: it trains and cannot keep what it trained."""
        session, updates = running(), deployment.nodes["a"].path / "scratch" / "updates"
        shutil.rmtree(updates, ignore_errors=True)
        updates.touch()
        found = session.driven.train(session.federation)
        updates.unlink()
        assert [u.client for u in found.updates] == ["b"]
        ((client, reason),) = [(r.client, r.reason) for r in found.refusals]
        assert client == "a"
        assert re.fullmatch(r"FileExistsError: .*updates.*; see the client's log", reason)
        again = session.driven.train(session.federation)
        assert [u.client for u in again.updates] == ["a", "b"]
        assert session.said("b", "step 150/150") == 1

    def test_an_agent_that_is_killed_begins_again(self, running: Callable[..., Driven], deployment: Any) -> None:
        session = running()
        with session.training():
            os.kill(deployment.pid(deployment.nodes["a"], "agent"), signal.SIGKILL)
        assert session.updates() == ["a", "b"]
        assert [session.said(name, "step 20/150") for name in "ab"] == [2, 1]
        assert [session.said(name, "step 150/150") for name in "ab"] == [1, 1]

    def test_a_round_goes_on_without_who_is_away_and_takes_them_back(
        self, running: Callable[..., Driven], deployment: Any, kept: Path, recordings: dict[str, Path]
    ) -> None:
        from zk0.session import ClientSettings

        session, node = running(absence_seconds=3, min_updates=1), deployment.nodes["a"]
        node.stop()
        found = session.driven.train(session.federation)
        assert [u.client for u in found.updates] == ["b"]
        assert [r.client for r in found.refusals] == ["a"]
        assert re.fullmatch(r"its node has been out of reach for \d+ s", found.refusals[0].reason)
        session.driven.average(found.updates)
        node.start(ClientSettings(name="a", dataset=f"local:{recordings['a']}"), kept, outlives=False)
        until(lambda: "online" in [n.status for n in deployment.server.nodes() if n.name == "a"])
        found = session.driven.train(session.federation)
        assert [u.client for u in found.updates] == ["a", "b"]

    def test_a_client_that_may_not_take_part_says_why(
        self, deployment: Any, kept: Path, recordings: dict[str, Path], drive: type, tmp_path: Path
    ) -> None:
        from zk0.federation.open import open_federation
        from zk0.session import ClientSettings

        node, session = deployment.nodes["a"], deployment.session(federation={"nodes": ["b", "a"]})
        node.stop()
        node.start(ClientSettings(name="a", dataset=f"local:{tmp_path}/nothing"), kept, outlives=False)
        try:
            with (
                open_federation(session, "missing", tmp_path / "s") as federation,
                pytest.raises(FederationError, match=r"1 of 2 clients cannot take part: .*no LeRobot data set at"),
            ):
                drive(session, tmp_path / "s").begin(federation)
        finally:
            node.stop()
            node.start(ClientSettings(name="a", dataset=f"local:{recordings['a']}"), kept, outlives=False)
        until(lambda: {n.status for n in deployment.server.nodes()} == {"online"})
        with open_federation(session, "back", tmp_path / "s") as federation:
            driven = drive(session, tmp_path / "s")
            driven.begin(federation)
        assert [m.client for m in driven.members] == ["b", "a"]


DRIVER = """
import pickle, sys
from pathlib import Path
from zk0.federation.open import open_federation
from zk0.session import load_session, terms_of
session, name, plans, weights, spool = pickle.loads(Path(sys.argv[1]).read_bytes())
with open_federation(session, name, Path(sys.argv[1]).parent) as federation:
    federation.join(terms_of(session, name))
    federation.train(plans, weights, spool)
"""


def test_a_session_that_is_killed_goes_on_with_what_the_clients_have(
    running: Callable[..., Driven], deployment: Any, tmp_path: Path
) -> None:
    import pickle

    session = running()
    driven = session.driven
    what = (driven.session, driven.name, driven.plans(), Path(driven.history[-1].path), driven.spool())
    (tmp_path / "session" / "what").write_bytes(pickle.dumps(what))
    session.began = {name: len(session.log(name)) for name in "ab"}
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "session" / "what")]
    killed = subprocess.Popen(command)
    until(lambda: all(session.said(name, "step 20/150") for name in "ab"))
    killed.kill()
    killed.wait()
    found = driven.train(session.federation)
    assert [u.client for u in found.updates] == ["a", "b"]
    assert session.trained_once()


def test_a_run_that_was_begun_and_never_taken_is_ended(running: Callable[..., Driven], deployment: Any) -> None:
    from flwr.proto.control_pb2 import ListRunsRequest, ListRunsResponse, StartRunRequest, StartRunResponse
    from flwr.proto.fab_pb2 import Fab

    from zk0.federation.api import Api
    from zk0.federation.run import _bundle

    with Api(deployment.server.endpoint()) as api:
        asked = StartRunRequest(fab=Fab(content=_bundle()))
        orphan = api.call("/v1/control/start-run", asked, StartRunResponse).run_id
        session = running()
        runs = api.call("/v1/control/list-runs", ListRunsRequest(), ListRunsResponse).run_dict
    assert (runs[orphan].status.status, runs[orphan].status.sub_status) == ("finished", "stopped")
    assert [m.client for m in session.driven.members] == ["a", "b"]


def test_a_superlink_without_a_memory_takes_its_nodes_back(
    deploy: Callable[..., Any], drive: type, tmp_path: Path
) -> None:
    """Killed, it has forgotten them; enrolled anew they have other numbers, and are known by their names."""
    from zk0.federation.open import open_federation

    deployment = deploy(tmp_path, in_memory=True)
    try:
        session = deployment.session(federation={"absence_seconds": 200})
        with open_federation(session, "forgetful", tmp_path / "session") as federation:
            driven = drive(session, tmp_path / "session", "forgetful")
            driven.begin(federation)
            before = {n.since for n in deployment.server.nodes()}
            os.kill(deployment.pid(deployment.server, "superlink"), signal.SIGKILL)
            found = driven.train(federation)
            assert [u.client for u in found.updates] == ["a", "b"]
        assert before.isdisjoint({n.since for n in deployment.server.nodes()})
        assert not (deployment.server.path / "superlink.db").exists()
    finally:
        deployment.stop()


class TestStrangers:
    """Real SuperNodes that are not, or no longer, welcome."""

    def said_by(self, deployment: Any, tmp_path: Path, **changes: Any) -> tuple[int, str]:
        """How a SuperNode ends that is started as node `a` is, but for some changes."""
        from zk0.federation.processes import free_port, supernode

        node = deployment.nodes["a"]
        asked = {
            "authority": node.path / "ca.crt",
            "key": node.path / "node.key",
            "server": node.kit().server,
        } | changes
        kept = supernode(
            tmp_path / "home", asked["server"], free_port(), asked["authority"], asked["key"], node.path / "secret"
        )
        command = [part for part in kept.command if part not in changes.get("without", ())]
        environment = {**os.environ, **kept.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, done.stdout + done.stderr

    def test_without_a_key(self, deployment: Any, tmp_path: Path) -> None:
        key = deployment.nodes["a"].path / "node.key"
        code, said = self.said_by(deployment, tmp_path, without=("--auth-supernode-private-key", str(key)))
        assert code != 0
        assert "305" in said
        assert len(deployment.server.nodes()) == 2

    def test_with_a_key_that_is_not_enrolled(self, deployment: Any, tmp_path: Path) -> None:
        from zk0.federation.authority import make_node_key

        (tmp_path / "key").write_bytes(make_node_key()[0])
        _, said = self.said_by(deployment, tmp_path, key=tmp_path / "key")
        assert "SuperNode ID" not in said  # what one says that is let in
        assert "a key that is not enrolled" in deployment.server.kept.log("gateway").read_text()

    def test_with_another_authority(self, deployment: Any, tmp_path: Path) -> None:
        from zk0.federation.authority import Authority

        Authority(tmp_path).make()
        code, said = self.said_by(deployment, tmp_path, authority=tmp_path / "ca.crt")
        assert code != 0
        assert "certificate" in said.lower()

    def test_in_plain_text(self, deployment: Any, tmp_path: Path) -> None:
        node = deployment.nodes["a"]
        without = ("--root-certificates", str(node.path / "ca.crt"), "--auth-supernode-private-key")
        from zk0.federation.processes import free_port, supernode

        key, secret = node.path / "node.key", node.path / "secret"
        kept = supernode(tmp_path / "home", node.kit().server, free_port(), node.path / "ca.crt", key, secret)
        command = [part for part in kept.command if part not in (*without, str(key))] + ["--insecure"]
        environment = {**os.environ, **kept.environment}
        command += ["--max-retries", "1"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode != 0
        assert len(deployment.server.nodes()) == 2

    def test_a_node_that_is_revoked_is_out_until_it_has_another_kit(
        self, running: Callable[..., Driven], deployment: Any, kept: Path, recordings: dict[str, Path]
    ) -> None:
        from zk0.session import ClientSettings

        session, node = running(absence_seconds=3, min_updates=1), deployment.nodes["a"]
        deployment.server.revoke("a")
        until(lambda: (seen := node.kept.state().processes["supernode"]).starts > 1 or seen.pid is None)
        found = session.driven.train(session.federation)
        assert [u.client for u in found.updates] == ["b"]
        assert [n.name for n in deployment.server.nodes()] == ["b"]
        node.stop()
        node.take(deployment.server.enroll("a"))
        node.start(ClientSettings(name="a", dataset=f"local:{recordings['a']}"), kept, outlives=False)
        until(lambda: {n.status for n in deployment.server.nodes()} == {"online"})
