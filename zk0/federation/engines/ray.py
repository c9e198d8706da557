"""The Ray engine: Flower's simulation engine, running for a whole session instead of one round.

Flower deprecates `run_simulation`; this is the only file that uses it.

Flower returns a Ray actor whose client died to its pool, where the actor fails every later message, and Flower's
shutdown waits for clients that hang. Therefore an actor here does not train: it holds a worker process of the local
engine that does (`WorkerClientApp`), and outlives it. Ray restarts an actor that is killed.

Flower gives all messages to Ray at once, and they wait there for an actor. Therefore a message carries its time limit
beside its content, and an actor counts it from the moment on at which it takes the message up.
"""

import os
import queue
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from zk0.errors import FederationError
from zk0.federation.engines.worker_process import ForkServer, WorkerProcess
from zk0.federation.flower.private_api import ErrorCode, new_message
from zk0.federation.protocol.client_app import ProgressListener
from zk0.federation.protocol.exchange import limit_turn, take_turn_limit

_START_SECONDS = 180.0
_STOP_SECONDS = 60.0
_ACTOR_OPTIONS = {"max_restarts": -1, "max_task_retries": 1}
"""Ray restarts an actor whenever it dies, and retries the task that it was working on once."""
_QUEUE_SECONDS = 30 * 86_400.0
"""For which a message may wait for an actor; Flower forgets it then."""


class RayGrid:
    """Flower's in-memory grid, taken out of its ServerApp.

    A message's time to live counts from the moment on at which an actor takes it up.

    Args:
        grid: of Flower.
        ended: holds why the simulation has ended, once it has.
        actors: the connections of the actors.
    """

    limits_turns = True

    def __init__(self, grid: Any, ended: "queue.Queue[BaseException | None]", actors: "_ActorConnections") -> None:
        self._grid = grid
        self._ended = ended
        self._actors = actors
        self._open: set[str] = set()

    def get_nodes(self) -> Sequence[Any]:
        """Return all virtual nodes."""
        self._check_running()
        return list(self._grid.get_nodes())

    def make_message(
        self, content: RecordDict, dst_node_id: int, message_type: str, ttl: float, group_id: str
    ) -> Message:
        """Create a message of the simulation's run."""
        limited = limit_turn(content, ttl)
        return new_message(self._grid.run.run_id, limited, dst_node_id, message_type, _QUEUE_SECONDS, group_id)

    def push_messages(self, messages: Sequence[Message]) -> Sequence[str]:
        """Give messages to the actors, and return their ids."""
        ids = list(self._grid.push_messages(messages))
        if not self._open:
            self._actors.expect()
        self._open.update(ids)
        return ids

    def pull_messages(self, ids: Sequence[str]) -> Sequence[Message]:
        """Return the replies that have arrived, each once."""
        self._check_running()
        found = list(self._grid.pull_messages(ids))
        self._open.difference_update(message.metadata.reply_to_message_id for message in found)
        return found

    def discard(self, ids: Sequence[str]) -> None:
        """Let no actor take up these messages any more; Flower's simulation deletes them when it ends."""
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
    """

    def __init__(self, address: str, log_folder: Path) -> None:
        super().__init__()
        self._address, self._log_folder = address, log_folder

    def __call__(self, message: Message, context: Context) -> Message:
        """Return the client's answer, or a message with an Error that says why there is none."""
        seconds = take_turn_limit(message)
        try:
            if _discarded(Path(self._address).parent, message.metadata.message_id).exists():
                raise FederationError("its round is over")
            worker, session = _actor_worker(self._address, self._log_folder)
            reply, after = worker.request(message, context, seconds, session)
        except FederationError as e:
            return Message(Error(ErrorCode.CLIENT_APP_CRASHED, str(e)), reply_to=message)
        context.state = after.state
        return reply


def _discarded(folder: Path, message_id: str) -> Path:
    """Return the file that exists once nobody waits for the answer to a message."""
    return folder / f"discarded-{message_id}"


_actor_workers: dict[str, tuple[WorkerProcess, Connection]] = {}


def _actor_worker(address: str, log_folder: Path) -> tuple[WorkerProcess, Connection]:
    """Return the worker process of this actor, and the connection to the session; both are created once."""
    if address not in _actor_workers:
        session = Client(address)
        number = session.recv()
        server = ForkServer(log_folder / f"workers-{number}.log")
        worker = WorkerProcess(server, number, log_folder, lambda *step: session.send(step))
        _actor_workers[address] = worker, session
    return _actor_workers[address]


class _ActorConnections:
    """Accepts a connection of each actor: progress comes in, and closing it makes the actor kill its process."""

    def __init__(self, on_step: ProgressListener | None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="zk0-ray-"))
        self.address = str(self.folder / "socket")
        self._listener = Listener(self.address, "AF_UNIX")
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
            except OSError:
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
    nodes: int, workers: int, gpus: float, log_folder: Path, on_step: ProgressListener | None = None
) -> Iterator[RayGrid]:
    """Start a simulation, and yield its grid.

    Args:
        nodes: number of virtual nodes.
        workers: the most actors at a time.
        gpus: share of a GPU that each actor reserves.
        log_folder: for the output of the worker processes.
        on_step: called with the progress of clients, and when they wait for a GPU, from a thread.

    Raises:
        FederationError: Ray is not installed, or the simulation does not start.
    """
    try:
        import ray  # noqa: F401
    except ImportError as e:
        raise FederationError('engine "ray" needs Ray: install zk0[ray] (uv sync --extra ray)') from e
    log_folder.mkdir(parents=True, exist_ok=True)
    with _ActorConnections(on_step) as connections:
        options = {"num_cpus": 1.0, "num_gpus": gpus, **_ACTOR_OPTIONS}
        simulation = _Simulation(nodes, workers, options, WorkerClientApp(connections.address, log_folder))
        simulation.start()
        try:
            yield RayGrid(simulation.grid(), simulation.ended, connections)
        finally:
            connections.close()  # first, because Flower's shutdown waits for clients that train
            simulation.stop()


class _Simulation:
    """`run_simulation` in a thread; its ServerApp passes the grid to this process and waits."""

    def __init__(self, nodes: int, workers: int, actor_options: dict[str, float], client_app: ClientApp) -> None:
        self._nodes, self._workers, self._client_app = nodes, workers, client_app
        self._actor_options = actor_options
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

        init_args = {"num_cpus": self._workers, "include_dashboard": False, "log_to_driver": False}
        failure: BaseException | None = None
        try:
            run_simulation(
                server_app,
                self._client_app,
                num_supernodes=self._nodes,
                backend_config={"client_resources": self._actor_options, "init_args": init_args},
            )
        except Exception as e:  # raised by the thread that uses the grid
            failure = e
        finally:
            self.ended.put(failure)
            self._started.put(None)
