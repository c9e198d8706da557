import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from zk0.audit.ledger import Ledger
from zk0.audit.ledger_heads import HeadSigner
from zk0.audit.signing_key import SigningKey
from zk0.records import BufferedRound, Checkpoint, Member, PolicyRecipe, RoundDecision, RoundRecord, Statistics, Update
from zk0.settings.loading import parse_session
from zk0.settings.plans import EvaluationPlan, FeaturePlan, RoundPlan, session_terms
from zk0.settings.session import Session

SETTINGS: dict[str, Any] = {
    "name": "mini",
    "policy": {"path": "tiny"},
    "training": {"local_steps": 3, "batch_size": 8, "lr": 1e-3, "log_every_steps": 1},
    "federation": {"workers": 0, "round_timeout_seconds": 240},
}


@pytest.fixture(scope="session")
def session_of(recordings: dict[str, Path], shared_cache: Path) -> Callable[..., Session]:
    """Return a function that makes a session of some clients with the small datasets; settings are given by table."""

    def make(names: Sequence[str] = ("a", "b", "c"), **changes: Any) -> Session:
        values = SETTINGS | {
            "clients": [{"name": n, "dataset": f"local:{recordings[n]}"} for n in names],
            "evaluation": {"datasets": [{"dataset": f"local:{recordings['evaluation']}"}]},
            "cache_dir": str(shared_cache),
        }
        for table, settings in changes.items():
            values = values | {table: {**values.get(table, {}), **settings} if isinstance(settings, dict) else settings}
        return parse_session(values, "test")

    return make


@pytest.fixture(scope="session")
def nodes_of() -> Callable[[Session, Path], list[dict[str, Any]]]:
    """Return a function that makes the node configurations of a session, with scratch folders in a folder."""

    def make(session: Session, folder: Path) -> list[dict[str, Any]]:
        cache = session.cache_dir
        return [
            {"client": c.model_dump_json(), "scratch": str(folder / "clients" / c.name), "cache": cache}
            for c in session.local_clients()
        ]

    return make


@dataclass
class RoundDriver:
    """Runs the rounds of a session step by step: join, train, average."""

    session: Session
    folder: Path
    name: str = "mini"
    members: tuple[Member, ...] = ()
    history: list[Checkpoint] = field(default_factory=list)
    updates: tuple[Update, ...] = ()
    buffered: BufferedRound | None = None
    """How the last round came about, if it was buffered."""
    _collected: BufferedRound | None = field(default=None, init=False)

    def begin(self, federation: Any, wait_seconds: float = 0.0) -> None:
        from zk0.data.statistics import pool_moments
        from zk0.evaluation.global_model import build_start_policy

        self.members = federation.join(session_terms(self.session, self.name), wait_seconds=wait_seconds)
        self.statistics: Statistics = pool_moments([m.statistics for m in self.members])
        start = self.folder / "round-000" / "weights.safetensors"
        recipe, digest, size = build_start_policy(self.session, start)
        self.recipe: PolicyRecipe = recipe
        self._finish_round(Checkpoint(round=0, path=str(start), digest=digest, bytes=size))

    def plans(self, **changes: Any) -> list[RoundPlan]:
        """Return the plans of the next round."""
        before = self.history[-1]
        common = {"terms": session_terms(self.session, self.name), "round": before.round + 1, "recipe": self.recipe}
        common |= {"global_digest": before.digest, "statistics": self.statistics, "lr": self.session.training.lr}
        common |= {"training": self.session.training.local_settings(), "scheduler": self.session.scheduler}
        common |= {"mu": 0.01} | changes
        return [RoundPlan(client=m.client, **common) for m in self.members]

    def spool(self) -> Path:
        return self.folder / f"round-{self.history[-1].round + 1:03d}" / "updates"

    def train(self, federation: Any, listener: Any = None, **changes: Any) -> Any:
        """Collect the updates of a round; with a federation for buffered rounds, in a buffer of all clients."""
        from collecting import FEDERATIONS, collect_updates

        plans = self.plans(buffered=isinstance(federation, FEDERATIONS["buffered"]), **changes)
        weights = Path(self.history[-1].path)
        found, self._collected = collect_updates(federation, plans, weights, self.spool(), listener, self.buffered)
        return found

    def compute_features(self, federation: Any, **changes: Any) -> Any:
        """Let the clients compute the features of all their frames."""
        plans = self._model_plans(**{"every_frames": 1, **changes})
        return federation.compute_features([FeaturePlan(**plan) for plan in plans])

    def evaluate(self, federation: Any, listener: Any = None, **changes: Any) -> Any:
        """Let the clients evaluate the last global weights."""
        values = {"times": 2, "batch_size": 8, "every_frames": 1} | changes
        plans = [EvaluationPlan(**plan) for plan in self._model_plans(**values)]
        return federation.evaluate(plans, Path(self.history[-1].path), listener)

    def _model_plans(self, **changes: Any) -> list[dict[str, Any]]:
        last = self.history[-1]
        common = {"terms": session_terms(self.session, self.name), "round": last.round, "recipe": self.recipe}
        common |= {"global_digest": last.digest, "statistics": self.statistics}
        common |= {"training": self.session.training.local_settings()} | changes
        return [{"client": member.client, **common} for member in self.members]

    def average(self, updates: Any) -> Any:
        from zk0.aggregation.aggregate import aggregate

        number = self.history[-1].round + 1
        target = self.folder / f"round-{number:03d}" / "weights.safetensors"
        mean = aggregate(updates, Path(self.history[-1].path), target)
        self._finish_round(Checkpoint(round=number, path=str(target), digest=mean.digest, bytes=mean.bytes))
        self.buffered = self._collected
        return mean

    def _finish_round(self, checkpoint: Checkpoint) -> None:
        """Append the round to the ledger, whose heads then go with each request to a node."""
        self.history.append(checkpoint)
        record = RoundRecord(round=checkpoint.round, checkpoint=checkpoint, seconds=1, finished_at="")
        Ledger(self.folder / "ledger.jsonl").append(record)

    def decision(self) -> RoundDecision:
        return RoundDecision(round=self.history[-1].round + 1, lr=self.session.training.lr, mu=0.01, reason="by hand")


@pytest.fixture(scope="session")
def drive() -> type[RoundDriver]:
    """Return the class RoundDriver."""
    return RoundDriver


def _alive(text: bytes) -> dict[int, int]:
    """Return the parent of every running process whose command line contains the text, by process id."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdigit() or text not in (entry / "cmdline").read_bytes():
                continue
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # the process has ended
            continue
        if state != "Z":
            found[int(entry.name)] = int(parent)
    return found


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _is_descendant(pid: int) -> bool:
    while pid > 1:
        if (pid := _parent(pid)) == os.getpid():
            return True
    return False


def _own_workers() -> list[int]:
    """Return the fork servers and workers that this process has started, directly or through Ray."""
    return [pid for pid in _alive(b"zk0.federation.engines.worker") if _is_descendant(pid)]


@pytest.fixture
def my_workers() -> Iterator[Callable[[], list[int]]]:
    """Return a function that lists the worker processes of this test; none may be left when the test is over."""
    before = _own_workers()

    def started() -> list[int]:
        return [pid for pid in _own_workers() if pid not in before]

    yield started
    assert started() == []


@pytest.fixture
def workers() -> Callable[[], dict[int, int]]:
    """Return a function that lists all worker processes on this machine: the parent by process id."""
    return lambda: _alive(b"zk0.federation.engines.worker")


def descendants(pid: int) -> set[int]:
    """Return a process and all that it has started, as far as they run."""
    children: dict[int, list[int]] = {}
    alive = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # the process has ended
            continue
        if state != "Z":
            alive.add(int(entry.name))
            children.setdefault(int(parent), []).append(int(entry.name))
    found, todo = set(), [pid]
    while todo:
        one = todo.pop()
        found |= {one} & alive
        todo += children.get(one, [])
    return found


@dataclass
class Deployment:
    """A server and its nodes on this machine, as `zk0bot` starts them."""

    folder: Path
    server: Any
    nodes: dict[str, Any]
    make: Callable[..., Session]

    def session(self, **changes: Any) -> Session:
        """Return a session of these nodes."""
        settings = {"engine": "deployment", "server": str(self.server.path), "nodes": sorted(self.nodes)}
        settings |= changes.pop("federation", {})
        return self.make((), clients=[], federation=settings, **changes)

    def processes(self) -> set[int]:
        """Return all processes of server and nodes."""
        states = [one.supervised.state() for one in (self.server, *self.nodes.values())]
        return set().union(*(descendants(state.pid) for state in states if state is not None))

    def pid(self, where: Any, name: str) -> int:
        """Return the process id of one supervised process."""
        return int(where.supervised.state().processes[name].pid)

    def stop(self) -> None:
        """Stop all; no process may be left."""
        running = self.processes()
        for one in (*self.nodes.values(), self.server):
            one.stop()
        deadline = time.monotonic() + 60  # Linux kills workers when their agent ends
        while left := {pid for pid in running if descendants(pid)}:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)


@pytest.fixture(scope="session")
def deploy(
    session_of: Callable[..., Session], recordings: dict[str, Path], shared_cache: Path
) -> Callable[..., Deployment]:
    """Return a function that starts a server and nodes in a folder; the caller stops them."""
    from zk0.federation.network.flower_commands import free_port
    from zk0.federation.network.node import NodeFolder
    from zk0.federation.network.server import ServerFolder, ServerSettings
    from zk0.settings.dataset_settings import ClientSettings

    def start(folder: Path, names: Sequence[str] = ("a", "b"), **settings: Any) -> Deployment:
        server = ServerFolder(folder / "server")
        server.init(ServerSettings(hosts=("127.0.0.1",), port=free_port(), bind="127.0.0.1", **settings))
        nodes = {name: NodeFolder(folder / f"node-{name}") for name in names}
        limits = folder / "limits.toml"
        limits.write_text("min_round_frames = 8\n", encoding="utf-8")  # rounds of these tests are short
        for name, node in nodes.items():
            node.install_kit(server.enroll(name))
            node.install_limits(limits)
        started = Deployment(folder, server, nodes, session_of)
        try:
            for name, node in nodes.items():
                node.start(ClientSettings(name=name, dataset=f"local:{recordings[name]}"), shared_cache, detached=False)
            server.start(detached=False)
        except BaseException:
            started.stop()
            raise
        return started

    return start


Listener = Callable[[str, int, int, int, str], None]


@dataclass
class Engine:
    """A running engine with one worker process for the clients a, b and c, shared by many tests."""

    name: str
    session: Session
    folder: Path
    grid: Any
    nodes_file: Path | None
    listeners: list[Listener] = field(default_factory=list)
    ledger_key: SigningKey | None = None
    """Of the server of nodes, which answer no request without a signed head of the session's ledger."""
    heads: HeadSigner | None = None
    """Of the session that runs on the engine."""
    deployment: Deployment | None = None
    """Server and nodes, where it has any."""

    def federation(self, timeout_seconds: float = 240, grid: Any = None, mode: str = "synchronous") -> Any:
        """Return a new federation on the engine, or on a `grid` that wraps it."""
        from collecting import FEDERATIONS

        clients = ("a", "b", "c")
        return FEDERATIONS[mode](grid or self.grid, clients, timeout_seconds, self.nodes_file, heads=self.heads)

    def show_ledger(self, driven: RoundDriver) -> None:
        """Let the federations of this engine show the ledger of a session to nodes."""
        if self.ledger_key is not None:
            self.heads = HeadSigner(driven.folder / "ledger.jsonl", driven.name, self.ledger_key)

    def processes(self) -> set[int]:
        """Return its fork server and workers; Ray's are children of an actor, the local ones of this process."""
        alive = _alive(b"zk0.federation.engines.worker")
        mine = {pid for pid in alive if _is_descendant(pid)}
        servers = {pid for pid in mine if alive[pid] not in mine}
        servers = {pid for pid in servers if (alive[pid] == os.getpid()) == (self.name == "local")}
        return servers | {pid for pid in mine if alive[pid] in servers}

    def worker(self) -> int:
        """Return the worker process."""
        alive, mine = _alive(b"zk0.federation.engines.worker"), self.processes()
        (found,) = [pid for pid in mine if alive.get(pid) in mine]
        return found

    def actor(self) -> int:
        """Return the Ray actor that has started its fork server."""
        return _parent(_parent(self.worker()))

    def log(self, client: str) -> str:
        """Return the log of a client."""
        return (self.folder / "clients" / client / "client.log").read_text(encoding="utf-8")


@contextmanager
def _opened(name: str, session: Session, folder: Path) -> Iterator[Engine]:
    """Open an engine, and close it while a client hangs: nothing may wait for it, and no process may be left."""
    from zk0.federation.open import open_federation
    from zk0.settings.plans import session_terms

    listeners: list[Listener] = []
    with open_federation(session, name, folder, lambda *step: [listener(*step) for listener in listeners]) as found:
        engine = Engine(name, session, folder, found._grid, found._nodes_file, listeners)
        yield engine
        engine.federation().join(session_terms(session, "last"))
        os.kill(engine.worker(), signal.SIGSTOP)
        node = next(iter(engine.grid.get_nodes())).node_id
        request = RecordDict({"config": ConfigRecord({"terms": ""})})
        engine.grid.push_messages([engine.grid.make_message(request, node, "query", 600, "hangs")])
        time.sleep(1)
        mine = engine.processes()
    assert not mine & _alive(b"zk0.federation.engines.worker").keys()
    assert name == "local" or "zk0-ray" not in {t.name for t in threading.enumerate()}


@pytest.fixture(scope="session")
def local_engine(session_of: Callable[..., Session], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The local engine; it is started once."""
    session = session_of(federation={"engine": "local", "workers": 1})
    with _opened("local", session, tmp_path_factory.mktemp("local")) as engine:
        yield engine


@pytest.fixture(scope="session")
def ray_engine(session_of: Callable[..., Session], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The Ray engine; it is started once, because a process can have one Ray."""
    session = session_of(federation={"engine": "ray", "workers": 1})
    with _opened("ray", session, tmp_path_factory.mktemp("ray")) as engine:
        yield engine


@pytest.fixture(scope="module")
def deployment_engine(deploy: Callable[..., Deployment], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A SuperLink and three nodes; clients/NAME links to the scratch folder of a node."""
    from zk0.federation.open import open_federation

    folder = tmp_path_factory.mktemp("superlink")
    started = deploy(folder, ("a", "b", "c"))
    try:
        (folder / "clients").mkdir()
        for name, node in started.nodes.items():
            (folder / "clients" / name).symlink_to(node.path / "scratch")
        session = started.session()
        with open_federation(session, "superlink", folder / "session") as found:
            key = started.server.ledger_key
            yield Engine("deployment", session, folder, found._grid, None, ledger_key=key, deployment=started)
    finally:
        started.stop()


@pytest.fixture(scope="module", params=["local", "ray"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Every engine."""
    return request.getfixturevalue(f"{request.param}_engine")
