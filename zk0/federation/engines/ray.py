"""The Ray engine: Flower's simulation engine, running for a whole session instead of one round.

Flower deprecates `run_simulation`; this is the only file that uses it.

Flower returns a Ray actor whose client died to its pool, where the actor fails every later message, and Flower's
shutdown waits for clients that hang. Therefore an actor here does not train: it holds a worker process of the local
engine that does (`WorkerClientApp`), and outlives it. Ray restarts an actor that is killed.

Flower gives all messages to Ray at once, and they wait there for an actor. Therefore a message carries its time limit
beside its content, and an actor counts it from the moment on at which it takes the message up.

Without an address Ray is started on this machine, and messages name weights by path. In a cluster they are objects
(`zk0.federation.engines.ray_cluster`).
"""

import os
import queue
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from zk0.errors import FederationError
from zk0.federation.engines.worker_process import ForkServer, WorkerProcess
from zk0.federation.flower.private_api import ErrorCode, new_message
from zk0.federation.protocol.client_app import ProgressListener
from zk0.federation.protocol.exchange import limit_turn, take_turn_limit

if TYPE_CHECKING:
    from zk0.federation.engines.ray_cluster import ClusterSession, MachineFiles, SessionObjects

_START_SECONDS = 180.0
_STOP_SECONDS = 60.0
_ACTOR_OPTIONS = {"max_restarts": -1, "max_task_retries": 1}
"""Ray restarts an actor whenever it dies, and retries the task that it was working on once."""
_QUEUE_SECONDS = 30 * 86_400.0
"""For which a message may wait for an actor; Flower forgets it then."""


class SessionAddress(NamedTuple):
    """Where a session listens for its actors."""

    address: str | tuple[str, int]
    """Path of a socket on this machine; host and port in a cluster."""
    key: bytes | None = None
    """Actors in a cluster prove that they know it."""


class RayGrid:
    """Flower's in-memory grid, taken out of its ServerApp.

    A message's time to live counts from the moment on at which an actor takes it up.

    Args:
        grid: Flower's.
        ended: holds why the simulation has ended, once it has.
        actors: the connections of the actors.
        objects: in a cluster, what takes the place of files in messages.
    """

    limits_turns = True

    def __init__(
        self,
        grid: Any,
        ended: "queue.Queue[BaseException | None]",
        actors: "_ActorConnections",
        objects: "SessionObjects | None" = None,
    ) -> None:
        self._grid = grid
        self._ended = ended
        self._actors = actors
        self._objects = objects
        self._open: set[str] = set()

    def get_nodes(self) -> Sequence[Any]:
        """Return all virtual nodes."""
        self._check_running()
        return list(self._grid.get_nodes())

    def make_message(
        self, content: RecordDict, dst_node_id: int, message_type: str, ttl: float, group_id: str
    ) -> Message:
        """Create a message of the simulation's run."""
        if self._objects is not None:
            content = self._objects.outgoing(content)
        limited = limit_turn(content, ttl)
        return new_message(self._grid.run.run_id, limited, dst_node_id, message_type, _QUEUE_SECONDS, group_id)

    def push_messages(self, messages: Sequence[Message]) -> Sequence[str]:
        """Give messages to the actors, and return their ids."""
        ids = list(self._grid.push_messages(messages))
        if self._objects is not None:
            self._objects.keep(dict(zip(ids, messages, strict=True)))
        if not self._open:
            self._actors.expect()
        self._open.update(ids)
        return ids

    def pull_messages(self, ids: Sequence[str]) -> Sequence[Message]:
        """Return the replies that have arrived, each once."""
        self._check_running()
        found = list(self._grid.pull_messages(ids))
        self._open.difference_update(message.metadata.reply_to_message_id for message in found)
        return found if self._objects is None else [self._objects.incoming(message) for message in found]

    def discard(self, ids: Sequence[str]) -> None:
        """Let no actor take up these messages any more, and drop their objects.

        Flower's simulation deletes its messages when it ends.
        """
        if self._objects is not None:
            self._objects.discard(ids)
        for message_id in self._open.intersection(ids):
            _discarded(self._actors.folder, message_id).touch()
        self._open.difference_update(ids)

    def _check_running(self) -> None:
        if not self._ended.empty():
            failure = self._ended.get()
            self._ended.put(failure)  # later calls must find it, too
            raise FederationError(f"the Ray simulation has ended: {failure}")
        if self._open and self._actors.absent_seconds() > _START_SECONDS:
            raise FederationError(f"no actor of Ray has been there for {_START_SECONDS:g} s: did its processes end?")


class WorkerClientApp(ClientApp):
    """The ClientApp in Ray's actors: it passes messages to a worker process of its own.

    Args:
        address: where the session listens for progress; when it closes the connection, the process is killed.
        log_folder: for the output of the processes (worker-N.log).
        cluster: of the session, whose machines have folders of their own; None: all actors are on its machine.
    """

    def __init__(self, address: SessionAddress, log_folder: Path, cluster: "ClusterSession | None" = None) -> None:
        super().__init__()
        self._address, self._log_folder, self._cluster = address, log_folder, cluster

    def __call__(self, message: Message, context: Context) -> Message:
        """Return the client's answer, or a message with an Error that says why there is none."""
        seconds = take_turn_limit(message)
        try:
            if self._cluster is None and self._is_discarded(message):
                raise FederationError("its round is over")
            worker, session, files = _actor_worker(self._address, self._log_folder, self._cluster)
            request = message if files is None else files.localize(message)  # fails if its objects were dropped
            reply, after = worker.request(request, context, seconds, session)
            reply = reply if files is None else files.share(message, reply)
        except FederationError as e:
            return Message(Error(ErrorCode.CLIENT_APP_CRASHED, str(e)), reply_to=message)
        context.state = after.state
        return reply

    def _is_discarded(self, message: Message) -> bool:
        return _discarded(Path(str(self._address.address)).parent, message.metadata.message_id).exists()


def _discarded(folder: Path, message_id: str) -> Path:
    """Return the file that exists once nobody waits for the answer to a message."""
    return folder / f"discarded-{message_id}"


_ActorWorker = tuple[WorkerProcess, Connection, "MachineFiles | None"]
_actor_workers: dict[SessionAddress, _ActorWorker] = {}


def _actor_worker(address: SessionAddress, log_folder: Path, cluster: "ClusterSession | None") -> _ActorWorker:
    """Return the worker process of this actor, the connection to the session, and its machine's files in a cluster.

    All are created once.
    """
    if address not in _actor_workers:
        session, files = Client(address.address, authkey=address.key), None
        number = session.recv()
        if cluster is not None:
            from zk0.federation.engines.ray_cluster import MachineFiles

            files = MachineFiles(cluster, session)
            log_folder = files.folder / "server"
            log_folder.mkdir(parents=True, exist_ok=True)
        server = ForkServer(log_folder / f"workers-{number}.log")
        worker = WorkerProcess(server, number, log_folder, lambda *step: session.send(step))
        _actor_workers[address] = worker, session, files
    return _actor_workers[address]


class _ActorConnections:
    """Accepts a connection of each actor: progress comes in, and closing it makes the actor kill its process.

    Args:
        on_step: called with the progress of clients.
        host: address of this machine in a cluster; None: actors are on this machine.
    """

    def __init__(self, on_step: ProgressListener | None, host: str | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="zk0-ray-"))
        key = None if host is None else secrets.token_bytes(32)
        place: Any = str(self.folder / "socket") if host is None else (host, 0)
        self._listener = Listener(place, "AF_UNIX" if host is None else "AF_INET", authkey=key)
        self.address = SessionAddress(self._listener.address, key)
        self._on_step = on_step or (lambda *_: None)
        self._connections: list[Connection] = []
        self._connected = 0
        self._absent_since = time.monotonic()
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True, name="zk0-ray-accept").start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def expect(self) -> None:
        """Expect an actor from now on: the first message starts one."""
        self._absent_since = time.monotonic()

    def absent_seconds(self) -> float:
        """Return for how long no actor has been connected although one was expected."""
        return 0.0 if self._connected else time.monotonic() - self._absent_since

    def close(self) -> None:
        """Close all connections and accept no other."""
        self._closed = True
        self._listener.close()
        for connection in self._connections:
            with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)  # while a thread reads from a connection, close() sends no end of file

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection = self._listener.accept()
                connection.send(len(self._connections))
            except (OSError, EOFError, AuthenticationError):
                continue
            self._connections.append(connection)
            threading.Thread(target=self._receive, args=(connection,), daemon=True, name="zk0-ray-progress").start()

    def _receive(self, connection: Connection) -> None:
        with self._lock:
            self._connected += 1
        try:
            while True:
                self._on_step(*connection.recv())
        except (EOFError, OSError):
            with self._lock:
                self._connected, self._absent_since = self._connected - 1, time.monotonic()


@contextmanager
def open_ray_grid(
    nodes: Sequence[Mapping[str, Any]],
    workers: int,
    gpus: float,
    log_folder: Path,
    on_step: ProgressListener | None = None,
    cluster: str | None = None,
) -> Iterator[RayGrid]:
    """Start a simulation, and yield its grid.

    Args:
        nodes: configurations of the virtual nodes.
        workers: the most actors at a time, where Ray is started here; in a cluster Ray decides by its CPUs and GPUs.
        gpus: share of a GPU that each actor reserves.
        log_folder: for the output of the worker processes; in a session's folder.
        on_step: called with the progress of clients, and when they wait for a GPU, from a thread.
        cluster: address of a running Ray cluster (HOST:PORT); None: Ray is started on this machine.

    Raises:
        FederationError: Ray is not installed, no cluster answers, or the simulation does not start.
    """
    try:
        import ray  # noqa: F401
    except ImportError as e:
        raise FederationError('engine "ray" needs Ray: install zk0[ray] (uv sync --extra ray)') from e
    log_folder.mkdir(parents=True, exist_ok=True)
    objects, host = None, None
    # "local": else Ray would connect to a cluster that runs, or once ran, on this machine
    init_args = {"address": "local", "num_cpus": workers, "include_dashboard": False, "log_to_driver": False}
    if cluster is not None:
        from zk0.federation.engines.ray_cluster import SessionObjects, connect_to_cluster, own_address

        connect_to_cluster(cluster)
        objects, host = SessionObjects(nodes, log_folder.parent.name, log_folder / "inbox"), own_address(cluster)
    with _ActorConnections(on_step, host) as connections:
        options = {"num_cpus": 1.0, "num_gpus": gpus, **_ACTOR_OPTIONS}
        app = WorkerClientApp(connections.address, log_folder, None if objects is None else objects.cluster)
        simulation = _Simulation(len(nodes), {"client_resources": options, "init_args": init_args}, app)
        simulation.start()
        try:
            yield RayGrid(simulation.grid(), simulation.ended, connections, objects)
        finally:
            connections.close()  # first, because Flower's shutdown waits for clients that train
            simulation.stop()


class _Simulation:
    """`run_simulation` in a thread; its ServerApp passes the grid to this process and waits."""

    def __init__(self, nodes: int, backend: dict[str, Any], client_app: ClientApp) -> None:
        self._nodes, self._backend, self._client_app = nodes, backend, client_app
        self._started: queue.Queue[Any] = queue.Queue()
        self.ended: queue.Queue[BaseException | None] = queue.Queue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="zk0-ray")

    def start(self) -> None:
        self._thread.start()

    def grid(self) -> Any:
        """Return Flower's grid, once the simulation has started."""
        try:
            found = self._started.get(timeout=_START_SECONDS)
        except queue.Empty as e:
            raise FederationError(f"the Ray simulation did not start within {_START_SECONDS:g} s") from e
        if found is None:
            raise FederationError(f"the Ray simulation did not start: {self.ended.get()}")
        return found

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        from flwr.serverapp import Grid, ServerApp
        from flwr.simulation import run_simulation

        server_app = ServerApp()

        @server_app.main()
        def main(grid: Grid, context: Any) -> None:
            self._started.put(grid)
            self._stopping.wait()

        failure: BaseException | None = None
        try:
            run_simulation(
                server_app,
                self._client_app,
                num_supernodes=self._nodes,
                backend_config=self._backend,
            )
        except Exception as e:  # raised by the thread that uses the grid
            failure = e
        finally:
            self.ended.put(failure)
            self._started.put(None)
