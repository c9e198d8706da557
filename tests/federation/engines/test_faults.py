"""A fault costs one reply: clients that are killed, hang or raise, and clients that may not take part."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict
from waiting import wait_until

from zk0.errors import FederationError
from zk0.federation.engines.local import LocalGrid
from zk0.federation.protocol.collect import Federation
from zk0.settings.loading import parse_session
from zk0.settings.plans import session_terms
from zk0.settings.session import Session

DRIVER = """
import sys, time
from pathlib import Path
from zk0.federation.engines.local import LocalGrid
with LocalGrid([], 2, Path(sys.argv[1])) as warm:
    for worker in warm._workers:
        worker._connect()
        print(worker._pid, flush=True)
    with LocalGrid([], 2, Path(sys.argv[2])) as importing:
        while importing._server._process is None:
            time.sleep(0.05)
        for grid in (warm, importing):
            print(grid._server._process.pid, flush=True)
        time.sleep(600)
"""


STEPS = {"local_steps": 40, "log_every_steps": 40}
"""Enough steps to disturb a round in the middle, and one log line a round."""


def longer(session: Session) -> Any:
    return session.training.local_settings().model_copy(update=STEPS)


@pytest.fixture(scope="module")
def undisturbed(session_of: Callable[..., Session], drive: type, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest after one round without a fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    driven = drive(session_of(), folder)
    from zk0.federation.open import open_federation

    with open_federation(driven.session, "undisturbed", folder) as federation:
        driven.begin(federation)
        return driven.average(driven.train(federation, training=longer(driven.session)).updates).digest


class Disturbed:
    """A round on a running engine with a fault at a step of one client.

    A buffered round takes the updates of all clients, so that it ends with the weights of a synchronous one.
    """

    def __init__(self, engine: Any, drive: type, folder: Path, mode: str) -> None:
        self.engine, self.name, self.mode = engine, folder.name, mode
        self.driven = drive(engine.session, folder, self.name)
        self.federation = engine.federation(mode=mode)
        self.driven.begin(self.federation)
        self.before = {client: engine.log(client) for client in "abc"}

    def round(self, at_step: Callable[[], Any] | None = None, timeout_seconds: float | None = None) -> Any:
        """Train; `at_step` is called once, after the tenth step of client a."""
        left, federation = [at_step] if at_step else [], self.federation
        if timeout_seconds is not None:
            federation = self.engine.federation(timeout_seconds, mode=self.mode)
            federation.join(session_terms(self.engine.session, self.name))

        def on_step(client: str, round_number: int, step: int, steps: int, work: str) -> None:
            if (client, work) == ("a", "train") and step >= 10 and left:
                left.pop()()

        self.engine.listeners.append(on_step)
        try:
            return self.driven.train(federation, training=longer(self.engine.session))
        finally:
            self.engine.listeners.remove(on_step)
            assert not left

    def trainings(self) -> dict[str, tuple[int, int]]:
        """How often each client has begun to train since, and how often it has reached the last step."""
        new = {client: self.engine.log(client).removeprefix(text) for client, text in self.before.items()}
        return {c: (text.count(": round 1 from "), text.count(": round 1 step 40/40")) for c, text in new.items()}

    def digest(self, found: Any) -> str:
        assert [u.client for u in found.updates] == ["a", "b", "c"]
        return self.driven.average(found.updates).digest


@pytest.fixture(params=["synchronous", pytest.param("buffered", marks=pytest.mark.slow)])
def disturbed(engine: Any, drive: type, tmp_path: Path, request: pytest.FixtureRequest) -> Disturbed:
    return Disturbed(engine, drive, tmp_path, request.param)


def refused(found: Any) -> list[tuple[str, str]]:
    return [(r.client, r.reason) for r in found.refusals]


def test_a_client_that_raises(disturbed: Disturbed, undisturbed: str) -> None:
    """A file is in the place of the folder of its updates: it trains and cannot store the update."""
    engine, process = disturbed.engine, disturbed.engine.worker()
    updates = engine.folder / "clients/a/sessions"
    shutil.rmtree(updates, ignore_errors=True)
    updates.touch()
    found = disturbed.round()
    updates.unlink()
    assert [u.client for u in found.updates] == ["b", "c"]
    ((client, reason),) = refused(found)
    assert client == "a"
    assert re.fullmatch(r"NotADirectoryError: .*clients/a/sessions.*; see the client's log", reason)
    assert "Traceback" in engine.log("a").removeprefix(disturbed.before["a"])

    again = disturbed.round()
    assert refused(again) == []
    assert [(r.client, r.reason) for r in again.all_refusals] == refused(found)
    assert disturbed.trainings() == {"a": (2, 2), "b": (1, 1), "c": (1, 1)}
    assert disturbed.digest(again) == undisturbed
    assert engine.worker() == process


def test_a_client_that_is_killed(disturbed: Disturbed, undisturbed: str) -> None:
    engine, process = disturbed.engine, disturbed.engine.worker()
    found = disturbed.round(lambda: os.kill(process, signal.SIGKILL))
    assert [u.client for u in found.updates] == ["b", "c"]
    ((client, reason),) = refused(found)
    assert client == "a"
    assert re.fullmatch(r"its process was ended by SIGKILL \(out of memory\?\); see worker-\d.log", reason)
    assert engine.worker() != process

    before = {name: (disturbed.driven.spool() / f"{name}.safetensors").stat().st_mtime_ns for name in "bc"}
    again = disturbed.round()
    assert {name: (disturbed.driven.spool() / f"{name}.safetensors").stat().st_mtime_ns for name in "bc"} == before
    assert refused(again) == []
    assert disturbed.trainings()["a"][0] == 2
    assert all(disturbed.trainings()[name] == (1, 1) for name in "bc")
    assert disturbed.digest(again) == undisturbed


def test_a_client_that_hangs(disturbed: Disturbed, undisturbed: str) -> None:
    """It is killed at the timeout; clients that waited for its worker have their full time."""
    process, seconds = disturbed.engine.worker(), 20
    found = disturbed.round(lambda: os.kill(process, signal.SIGSTOP), timeout_seconds=seconds)
    assert refused(found) == [("a", f"no answer within {seconds} s")]
    assert [u.client for u in found.updates] == ["b", "c"]
    wait_until(lambda: not Path(f"/proc/{process}/cmdline").is_file(), 30)

    again = disturbed.round()
    assert refused(again) == []
    assert disturbed.trainings()["a"][0] == 2
    assert all(disturbed.trainings()[name] == (1, 1) for name in "bc")
    assert disturbed.digest(again) == undisturbed


def test_waiting_for_a_gpu_does_not_count(engine: Any, drive: type, tmp_path: Path) -> None:
    """The test holds the GPU's locks for longer than the time limit; then the clients find that there is no GPU."""
    from zk0.training.gpu_share import acquire_gpu_share, visible_gpus

    if visible_gpus():
        pytest.skip("this machine has a GPU")
    seconds, refusals = 3.0, list[Any]()
    driven, federation = drive(engine.session, tmp_path), engine.federation()
    driven.begin(federation)
    federation._feature_timeout = seconds
    on_gpu = engine.session.training.local_settings().model_copy(update={"device": "cuda"})
    thread = threading.Thread(target=lambda: refusals.extend(driven.compute_features(federation, training=on_gpu)))
    with acquire_gpu_share("0", 1.0, pytest.fail):
        thread.start()
        thread.join(2 * seconds)
        assert thread.is_alive()
    thread.join(60)
    assert [r.client for r in refusals] == ["a", "b", "c"]
    assert not [r.reason for r in refusals if "no answer" in r.reason]


@pytest.mark.slow
def test_the_parent_of_the_worker_is_killed(disturbed: Disturbed, undisturbed: str, workers: Callable) -> None:
    """The fork server, or its Ray actor: Ray retries at once, the local engine in the next attempt."""
    engine, process = disturbed.engine, disturbed.engine.worker()
    above = engine.actor() if engine.name == "ray" else workers()[process]
    found = disturbed.round(lambda: os.kill(above, signal.SIGKILL))
    wait_until(lambda: not Path(f"/proc/{process}/cmdline").is_file(), 30)
    if engine.name == "local":
        assert refused(found) == [("a", "its process ended; see worker-0.log")]
        found = disturbed.round()
    assert refused(found) == []
    assert disturbed.trainings()["a"][0] == 2
    assert all(disturbed.trainings()[name] == (1, 1) for name in "bc")
    assert disturbed.digest(found) == undisturbed


def test_an_error_of_a_client_is_a_refusal_with_its_text(
    session_of: Callable[..., Session], nodes_of: Callable, tmp_path: Path
) -> None:
    session = session_of(("a", "b"))
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients/a").touch()
    (tmp_path / "clients/b").touch()
    with (
        LocalGrid(nodes_of(session, tmp_path), 0, tmp_path / "server") as grid,
        pytest.raises(
            FederationError, match=r"2 of 2 clients cannot take part:\n.*FileExistsError: .*clients/a"
        ) as found,
    ):
        Federation(grid, ("a", "b"), 60).join(session_terms(session, "mini"))
    assert "clients/b" in str(found.value)


def test_processes_end_with_their_parent(tmp_path: Path, workers: Callable[[], dict[int, int]]) -> None:
    """A fork server with two workers, one of which hangs, and a fork server that still imports."""
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "warm"), str(tmp_path / "importing")]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    started = [int(driver.stdout.readline()) for _ in range(4)]
    assert {*started} <= workers().keys()
    os.kill(started[1], signal.SIGSTOP)
    driver.kill()
    driver.wait()
    driver.stdout.close()
    wait_until(lambda: not {*started} & workers().keys(), 30)


def test_a_message_that_no_worker_can_take_gets_an_answer(tmp_path: Path) -> None:
    """The configuration cannot be pickled. The worker's thread goes on, and answers the next message, too."""
    with LocalGrid([{"client": '{"name": "x"}', "lock": threading.Lock()}], 1, tmp_path / "server") as grid:
        (node,) = grid.get_nodes()
        for _ in range(2):
            message = grid.make_message(RecordDict(), node.node_id, "query", 600, "join")
            (reply,) = pulled(grid, grid.push_messages([message]))
            assert "cannot pickle" in reply.error.reason


def pulled(grid: LocalGrid, ids: list[str]) -> list[Any]:
    found: list[Any] = []

    def all_are_here() -> bool:
        found.extend(grid.pull_messages(ids))
        return len(found) == len(ids)

    wait_until(all_are_here)
    return found


def test_a_grid_that_is_closed_at_once_leaves_nothing(tmp_path: Path, my_workers: Callable[[], list[int]]) -> None:
    for number in range(5):
        with LocalGrid([], 2, tmp_path / str(number)):
            pass
        assert my_workers() == []


@pytest.fixture
def join(nodes_of: Callable, tmp_path: Path) -> Callable[[Session], Any]:
    def joined(session: Session) -> Any:
        with LocalGrid(nodes_of(session, tmp_path), 0, tmp_path / "server") as grid:
            return Federation(grid, [c.name for c in session.local_clients()], 60).join(session_terms(session, "mini"))

    return joined


class GridWithMissingNodes:
    """An engine of which only the first nodes are connected."""

    def __init__(self, grid: LocalGrid, connected: int) -> None:
        self._grid, self.connected = grid, connected

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def get_nodes(self) -> list[Any]:
        return self._grid.get_nodes()[: self.connected]


def test_a_resumed_session_goes_on_without_missing_clients(
    session_of: Callable[..., Session], nodes_of: Callable, drive: type, tmp_path: Path
) -> None:
    session = session_of(("a", "b", "c"))
    with LocalGrid(nodes_of(session, tmp_path), 0, tmp_path / "server") as every:
        driven, terms = drive(session, tmp_path), session_terms(session, "mini")
        driven.begin(Federation(every, ("a", "b", "c"), 60, min_clients=2))
        grid: Any = GridWithMissingNodes(every, 2)
        again = Federation(grid, ("a", "b", "c"), 60, min_clients=2)
        assert again.join(terms, driven.members, 0.05) == driven.members
        found = driven.train(again)
        assert [u.client for u in found.updates] == ["a", "b"]
        assert [(r.client, r.reason) for r in found.refusals] == [
            ("c", "its node has not rejoined since the session was interrupted")
        ]
        grid.connected = 3
        assert again.join_new_nodes(terms, 60) == driven.members
        found = driven.train(again)
        assert [u.client for u in found.updates] == ["a", "b", "c"]
        grid.connected = 1
        with pytest.raises(FederationError, match=r"1 nodes after 0\.1 s, expected at least 2"):
            Federation(grid, ("a", "b", "c"), 0.1, min_clients=2).join(terms, driven.members, 0.05)


class TestJoining:
    """Clients that may not take part: the error names each with the reason."""

    def test_members_come_in_the_order_of_the_session(self, session_of: Callable[..., Session], join: Callable) -> None:
        members = join(session_of(("c", "a")))
        assert [m.client for m in members] == ["c", "a"]
        assert [m.train_frames for m in members] == [24, 27]
        assert all(m.report.root == "" for m in members)

    def test_broken_data_and_other_cameras_are_named(
        self,
        session_of: Callable[..., Session],
        recordings: dict[str, Path],
        record: Callable[..., Path],
        join: Callable,
        tmp_path: Path,
    ) -> None:
        record(tmp_path / "one-camera", 11, (6, 6), ("wrist",))
        values = session_of(("a", "b", "c")).model_dump()
        values["clients"][1]["dataset"] = f"local:{tmp_path}/nothing"
        values["clients"][2]["dataset"] = f"local:{tmp_path}/one-camera"
        with pytest.raises(FederationError, match=r"2 of 3 clients cannot take part") as found:
            join(parse_session(values, "test"))
        assert "no LeRobot dataset at" in str(found.value)
        assert "overhead" in str(found.value)
        lines = str(found.value).splitlines()[1:]
        assert [line.startswith("  local:") for line in lines] == [True, True], lines

    def test_a_client_that_never_joined_cannot_train(
        self, session_of: Callable[..., Session], nodes_of: Callable, drive: type, tmp_path: Path
    ) -> None:
        session = session_of(("a", "b"))
        with LocalGrid(nodes_of(session, tmp_path), 0, tmp_path / "server") as grid:
            driven = drive(session, tmp_path)
            driven.begin(Federation(grid, ("a", "b"), 60))
            with pytest.raises(FederationError, match="a: has not joined"):
                driven.train(Federation(grid, ("a", "b"), 60))

    def test_too_few_nodes(self, session_of: Callable[..., Session], nodes_of: Callable, tmp_path: Path) -> None:
        session = session_of(("a", "b"))
        with (
            LocalGrid(nodes_of(session, tmp_path)[:1], 0, tmp_path / "server") as grid,
            pytest.raises(FederationError, match=r"1 nodes after 0.1 s, expected 2"),
        ):
            Federation(grid, ("a", "b"), 0.1).join(session_terms(session, "mini"))


def test_a_federation_is_open_once_and_found_by_name(session_of: Callable[..., Session], tmp_path: Path) -> None:
    from zk0.federation.open import get_federation, open_federation

    session = session_of()
    with open_federation(session, "one", tmp_path) as found:
        assert get_federation("one") is found
        with pytest.raises(FederationError, match="one: this federation is open already"):
            open_federation(session, "one", tmp_path).__enter__()
    with pytest.raises(FederationError, match="no federation of that name"):
        get_federation("one")
