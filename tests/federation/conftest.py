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

from zk0.records import Checkpoint, Decision, Member, PolicyRecipe, Statistics, Update
from zk0.session import EvaluationPlan, RoundPlan, Session, parse_session, terms_of

SETTINGS: dict[str, Any] = {
    "name": "mini",
    "policy": {"path": "tiny"},
    "training": {"local_steps": 3, "batch_size": 8, "lr": 1e-3, "log_every_steps": 1},
    "federation": {"workers": 0, "round_timeout_seconds": 240},
}


@pytest.fixture(scope="session")
def session_of(recordings: dict[str, Path], kept: Path) -> Callable[..., Session]:
    """A session of some clients on the small recordings; further settings by table."""

    def make(names: Sequence[str] = ("a", "b", "c"), **changes: Any) -> Session:
        values = SETTINGS | {
            "clients": [{"name": n, "dataset": f"local:{recordings[n]}"} for n in names],
            "evaluation": {"datasets": [{"dataset": f"local:{recordings['judge']}"}]},
            "cache_dir": str(kept),
        }
        for table, settings in changes.items():
            values = values | {table: {**values.get(table, {}), **settings} if isinstance(settings, dict) else settings}
        return parse_session(values, "test")

    return make


@pytest.fixture(scope="session")
def nodes_of() -> Callable[[Session, Path], list[dict[str, Any]]]:
    """Node configurations of a session's clients, with their scratch in a folder."""

    def make(session: Session, folder: Path) -> list[dict[str, Any]]:
        cache = session.cache_dir
        return [
            {"client": c.model_dump_json(), "scratch": str(folder / "clients" / c.name), "cache": cache}
            for c in session.members()
        ]

    return make


@dataclass
class Drive:
    """Drives a session's rounds by hand: join, train, average."""

    session: Session
    folder: Path
    name: str = "mini"
    members: tuple[Member, ...] = ()
    history: list[Checkpoint] = field(default_factory=list)
    updates: tuple[Update, ...] = ()

    def begin(self, federation: Any) -> None:
        from zk0.robot.statistics import pool
        from zk0.training.judge import start_policy

        self.members = federation.join(terms_of(self.session, self.name))
        self.statistics: Statistics = pool([m.statistics for m in self.members])
        start = self.folder / "round-000" / "weights.safetensors"
        recipe, digest, size = start_policy(self.session, start)
        self.recipe: PolicyRecipe = recipe
        self.history.append(Checkpoint(round=0, path=str(start), digest=digest, bytes=size))

    def plans(self, **changes: Any) -> list[RoundPlan]:
        """The plans of the next round."""
        before = self.history[-1]
        common = {"terms": terms_of(self.session, self.name), "round": before.round + 1, "recipe": self.recipe}
        common |= {"global_digest": before.digest, "statistics": self.statistics, "lr": self.session.training.lr}
        common |= {"mu": 0.01, "training": self.session.training, "scheduler": self.session.scheduler} | changes
        return [RoundPlan(client=m.client, **common) for m in self.members]

    def spool(self) -> Path:
        return self.folder / f"round-{self.history[-1].round + 1:03d}" / "updates"

    def train(self, federation: Any, listener: Any = None, **changes: Any) -> Any:
        return federation.train(self.plans(**changes), Path(self.history[-1].path), self.spool(), listener)

    def evaluate(self, federation: Any, listener: Any = None, **changes: Any) -> Any:
        """What the clients say of the last global weights."""
        last = self.history[-1]
        common = {"terms": terms_of(self.session, self.name), "round": last.round, "recipe": self.recipe}
        common |= {"global_digest": last.digest, "statistics": self.statistics, "training": self.session.training}
        common |= {"times": 2, "batch_size": 8, "every_frames": 1} | changes
        plans = [EvaluationPlan(client=m.client, **common) for m in self.members]
        return federation.evaluate(plans, Path(last.path), listener)

    def average(self, updates: Any) -> Any:
        from zk0.aggregation.aggregate import aggregate

        number = self.history[-1].round + 1
        target = self.folder / f"round-{number:03d}" / "weights.safetensors"
        mean = aggregate(updates, Path(self.history[-1].path), target)
        self.history.append(Checkpoint(round=number, path=str(target), digest=mean.digest, bytes=mean.bytes))
        return mean

    def decision(self) -> Decision:
        return Decision(round=self.history[-1].round + 1, lr=self.session.training.lr, mu=0.01, reason="by hand")


@pytest.fixture(scope="session")
def drive() -> type[Drive]:
    return Drive


def _alive(mark: bytes) -> dict[int, int]:
    """Process id -> parent of every process alive on this machine whose command line holds `mark`."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdigit() or mark not in (entry / "cmdline").read_bytes():
                continue
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it ended meanwhile
            continue
        if state != "Z":
            found[int(entry.name)] = int(parent)
    return found


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _is_mine(pid: int) -> bool:
    while pid > 1:
        if (pid := _parent(pid)) == os.getpid():
            return True
    return False


def _mine() -> list[int]:
    """Fork servers and workers that this process has started, itself or through Ray."""
    return [pid for pid in _alive(b"zk0.federation.worker") if _is_mine(pid)]


@pytest.fixture
def my_workers() -> Iterator[Callable[[], list[int]]]:
    """Processes of clients that this test has started; none may be left when it is over."""
    before = _mine()

    def mine() -> list[int]:
        return [pid for pid in _mine() if pid not in before]

    yield mine
    assert mine() == []


@pytest.fixture
def workers() -> Callable[[], dict[int, int]]:
    """Of all processes of clients on this machine, with their parents."""
    return lambda: _alive(b"zk0.federation.worker")


def descendants(pid: int) -> set[int]:
    """A process and all that it has started, as long as they run."""
    children: dict[int, list[int]] = {}
    alive = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it ended meanwhile
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
    """A server and its nodes, all on this machine, as `zk0bot` starts them."""

    folder: Path
    server: Any
    nodes: dict[str, Any]
    make: Callable[..., Session]

    def session(self, **changes: Any) -> Session:
        """A session of these nodes."""
        rules = {"engine": "deployment", "server": str(self.server.path), "nodes": sorted(self.nodes)}
        rules |= changes.pop("federation", {})
        return self.make((), clients=[], federation=rules, **changes)

    def processes(self) -> set[int]:
        """All processes of server and nodes."""
        states = [one.kept.state() for one in (self.server, *self.nodes.values())]
        return set().union(*(descendants(state.keeper) for state in states if state is not None))

    def pid(self, where: Any, name: str) -> int:
        """Of one kept process."""
        return int(where.kept.state().processes[name].pid)

    def stop(self) -> None:
        """End all; nothing may be left."""
        running = self.processes()
        for one in (*self.nodes.values(), self.server):
            one.stop()
        deadline = time.monotonic() + 60  # workers die with their agent, by Linux's hand
        while left := {pid for pid in running if descendants(pid)}:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)


@pytest.fixture(scope="session")
def deploy(session_of: Callable[..., Session], recordings: dict[str, Path], kept: Path) -> Callable[..., Deployment]:
    """Starts a server and nodes in a folder; whoever calls it stops them."""
    from zk0.federation.node import NodeFolder
    from zk0.federation.processes import free_port
    from zk0.federation.server import ServerFolder, ServerSettings
    from zk0.session import ClientSettings

    def start(folder: Path, names: Sequence[str] = ("a", "b"), **settings: Any) -> Deployment:
        server = ServerFolder(folder / "server")
        server.init(ServerSettings(hosts=("127.0.0.1",), port=free_port(), bind="127.0.0.1", **settings))
        nodes = {name: NodeFolder(folder / f"node-{name}") for name in names}
        for name, node in nodes.items():
            node.take(server.enroll(name))
        started = Deployment(folder, server, nodes, session_of)
        try:
            for name, node in nodes.items():
                node.start(ClientSettings(name=name, dataset=f"local:{recordings[name]}"), kept, outlives=False)
            server.start(outlives=False)
        except BaseException:
            started.stop()
            raise
        return started

    return start


Listener = Callable[[str, int, int, int, str], None]


@dataclass
class Engine:
    """A warm engine with one process for the clients a, b and c, shared by many tests."""

    name: str
    session: Session
    folder: Path
    grid: Any
    nodes_file: Path | None
    listeners: list[Listener] = field(default_factory=list)

    def federation(self, timeout_seconds: float = 240, grid: Any = None) -> Any:
        """A federation of one's own on it; `grid` stands between, if it is given."""
        from zk0.federation.collect import Federation

        return Federation(grid or self.grid, ("a", "b", "c"), timeout_seconds, self.nodes_file)

    def processes(self) -> set[int]:
        """Its fork server and workers; Ray's stand under an actor, the local ones under this process."""
        alive = _alive(b"zk0.federation.worker")
        mine = {pid for pid in alive if _is_mine(pid)}
        servers = {pid for pid in mine if alive[pid] not in mine}
        servers = {pid for pid in servers if (alive[pid] == os.getpid()) == (self.name == "local")}
        return servers | {pid for pid in mine if alive[pid] in servers}

    def worker(self) -> int:
        """The process that trains now."""
        alive, mine = _alive(b"zk0.federation.worker"), self.processes()
        (found,) = [pid for pid in mine if alive.get(pid) in mine]
        return found

    def actor(self) -> int:
        """The Ray actor above it."""
        return _parent(_parent(self.worker()))

    def log(self, client: str) -> str:
        """What a client has logged so far."""
        return (self.folder / "clients" / client / "client.log").read_text(encoding="utf-8")


@contextmanager
def _opened(name: str, session: Session, folder: Path) -> Iterator[Engine]:
    """An engine that is closed while a client hangs: nothing may wait for it, and no process may be left."""
    from zk0.federation.open import open_federation
    from zk0.session import terms_of

    listeners: list[Listener] = []
    with open_federation(session, name, folder, lambda *step: [tell(*step) for tell in listeners]) as found:
        engine = Engine(name, session, folder, found._grid, found._nodes_file, listeners)
        yield engine
        engine.federation().join(terms_of(session, "last"))
        os.kill(engine.worker(), signal.SIGSTOP)
        node = next(iter(engine.grid.get_nodes())).node_id
        question = RecordDict({"config": ConfigRecord({"terms": ""})})
        engine.grid.push_messages([engine.grid.make_message(question, node, "query", 600, "hangs")])
        time.sleep(1)
        mine = engine.processes()
    assert not mine & _alive(b"zk0.federation.worker").keys()
    assert name == "local" or "zk0-ray" not in {t.name for t in threading.enumerate()}


@pytest.fixture(scope="session")
def local_engine(session_of: Callable[..., Session], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The local engine, started once."""
    session = session_of(federation={"engine": "local", "workers": 1})
    with _opened("local", session, tmp_path_factory.mktemp("local")) as engine:
        yield engine


@pytest.fixture(scope="session")
def ray_engine(session_of: Callable[..., Session], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The Ray engine, started once: there is one Ray a process."""
    session = session_of(federation={"engine": "ray", "workers": 1})
    with _opened("ray", session, tmp_path_factory.mktemp("ray")) as engine:
        yield engine


@pytest.fixture(scope="module")
def deployment_engine(deploy: Callable[..., Deployment], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A SuperLink and three nodes; what is elsewhere called clients/NAME is the scratch folder of a node."""
    from zk0.federation.open import open_federation

    folder = tmp_path_factory.mktemp("superlink")
    started = deploy(folder, ("a", "b", "c"))
    try:
        (folder / "clients").mkdir()
        for name, node in started.nodes.items():
            (folder / "clients" / name).symlink_to(node.path / "scratch")
        session = started.session()
        with open_federation(session, "superlink", folder / "session") as found:
            yield Engine("deployment", session, folder, found._grid, None)
    finally:
        started.stop()


@pytest.fixture(scope="module", params=["local", "ray"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Every engine."""
    return request.getfixturevalue(f"{request.param}_engine")
