import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

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

    def train(self, federation: Any, on_update: Callable[[str], None] | None = None, **changes: Any) -> Any:
        return federation.train(self.plans(**changes), Path(self.history[-1].path), self.spool(), on_update)

    def evaluate(self, federation: Any, **changes: Any) -> Any:
        """What the clients say of the last global weights."""
        last = self.history[-1]
        common = {"terms": terms_of(self.session, self.name), "round": last.round, "recipe": self.recipe}
        common |= {"global_digest": last.digest, "statistics": self.statistics, "training": self.session.training}
        common |= {"times": 2, "batch_size": 8, "max_frames": None} | changes
        plans = [EvaluationPlan(client=m.client, **common) for m in self.members]
        return federation.evaluate(plans, Path(last.path))

    def average(self, updates: Any) -> Any:
        from zk0.aggregation.aggregate import aggregate

        number = self.history[-1].round + 1
        target = self.folder / f"round-{number:03d}" / "weights.safetensors"
        mean = aggregate(updates, Path(self.history[-1].path), target)
        self.history.append(Checkpoint(round=number, path=str(target), digest=mean.digest, bytes=mean.bytes))
        return mean

    def decision(self) -> Decision:
        return Decision(round=self.history[-1].round + 1, lr=self.session.training.lr, mu=0.01, reason="by hand")


@pytest.fixture
def drive() -> type[Drive]:
    return Drive


@pytest.fixture(scope="session")
def drive_of() -> type[Drive]:
    return Drive


def _workers() -> dict[int, int]:
    """Process id -> parent of every worker process alive on this machine."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdigit() or b"zk0.federation.worker" not in (entry / "cmdline").read_bytes():
                continue
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it ended meanwhile
            continue
        if state != "Z":
            found[int(entry.name)] = int(parent)
    return found


@pytest.fixture
def my_workers() -> Iterator[Callable[[], list[int]]]:
    """Worker processes that this process has started; none may be left when the test is over."""

    def mine() -> list[int]:
        return [worker for worker, parent in _workers().items() if parent == os.getpid()]

    yield mine
    assert mine() == []


@pytest.fixture
def workers() -> Callable[[], dict[int, int]]:
    return _workers


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
        rules = {"engine": "deployment", "server": str(self.server.path), **changes.pop("federation", {})}
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
        assert {pid for pid in running if descendants(pid)} == set()


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
                node.start(ClientSettings(name=name, dataset=f"local:{recordings[name]}"), kept)
            server.start()
        except BaseException:
            started.stop()
            raise
        return started

    return start
