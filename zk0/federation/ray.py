"""Flower's own simulation engine on Ray, kept warm for a whole session.

`run_simulation` is deprecated in flwr; this is the one file that changes when it goes.

Flower puts a Ray actor whose client died back into its pool, where it fails every later message, and its teardown waits
for clients that hang. So an actor here trains nothing itself: it lets a process of its own answer (`Supervised`), the
very worker of the local engine, and outlives it. An actor that is killed all the same is started again by Ray.
"""

import os
import queue
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from zk0.errors import FederationError
from zk0.federation.client_app import StepListener
from zk0.federation.client_process import ClientProcess, ForkServer

_START_SECONDS = 180.0
_STOP_SECONDS = 60.0
_RESTARTS = {"max_restarts": -1, "max_task_retries": 1}
"""Ray's options of an actor: started again whenever it dies, and what it was doing asked for once more."""


class RayGrid:
    """Flower's in-memory grid, handed out of its ServerApp to whoever drives the session."""

    def __init__(self, grid: Any, ended: "queue.Queue[BaseException | None]") -> None:
        self._grid = grid
        self._ended = ended

    def get_nodes(self) -> Sequence[Any]:
        """All virtual nodes."""
        self._check()
        return list(self._grid.get_nodes())

    def make_message(self, content: RecordDict, node: int, kind: str, ttl: float, group: str) -> Message:
        """A message of this run. Outside of Flower's process only Metadata tells the run."""
        from flwr.app import Metadata

        metadata = Metadata(self._grid.run.run_id, uuid.uuid4().hex, 1, node, "", group, time.time(), ttl, kind)
        return Message(content=content, metadata=metadata)

    def push_messages(self, messages: Sequence[Message]) -> Sequence[str]:
        """Hand messages out; answers their ids."""
        return list(self._grid.push_messages(messages))

    def pull_messages(self, ids: Sequence[str]) -> Sequence[Message]:
        """Replies that have arrived, each once."""
        self._check()
        return list(self._grid.pull_messages(ids))

    def forget(self, ids: Sequence[str]) -> None:
        """Flower's simulation drops what nobody asks for when it ends."""

    def _check(self) -> None:
        if not self._ended.empty():
            raise FederationError(f"the Ray simulation has ended: {self._ended.get()}")


class Supervised(ClientApp):
    """The ClientApp of zk0 as Ray's actors call it: a process of the actor's own answers.

    Args:
        line: address at which the session hears of steps; when it closes, processes are killed.
        log_folder: what a process prints goes to worker-K.log in here.
    """

    def __init__(self, line: str, log_folder: Path) -> None:
        super().__init__()
        self._line, self._log_folder = line, log_folder

    def __call__(self, message: Message, context: Context) -> Message:
        """The client's answer, or an Error that says why there is none."""
        metadata = message.metadata
        left = metadata.created_at + metadata.ttl - time.time()
        try:
            if left < 0:  # nobody waits for it any more
                raise FederationError(f"no answer within {metadata.ttl:g} s")
            process, lifeline = _own_process(self._line, self._log_folder)
            reply, after = process.ask(message, context, time.monotonic() + left, lifeline)
        except FederationError as e:
            return Message(Error(ErrorCode.CLIENT_APP_CRASHED, str(e)), reply_to=message)
        context.state = after.state
        return reply


_own: dict[str, tuple[ClientProcess, Connection]] = {}


def _own_process(line: str, log_folder: Path) -> tuple[ClientProcess, Connection]:
    """The one process of this actor, and the line to the session."""
    if line not in _own:
        lifeline = Client(line)
        number = lifeline.recv()
        server = ForkServer(log_folder / f"workers-{number}.log")
        process = ClientProcess(server, number, log_folder, lambda *step: lifeline.send(step))
        _own[line] = process, lifeline
    return _own[line]


class _Lifelines:
    """Where actors connect to: steps come in, and when it closes, their processes end."""

    def __init__(self, on_step: StepListener | None) -> None:
        self._folder = tempfile.mkdtemp(prefix="zk0-ray-")
        self.address = f"{self._folder}/line"
        self._listener = Listener(self.address, "AF_UNIX")
        self._on_step = on_step or (lambda *_: None)
        self._lines: list[Connection] = []
        self._closed = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True, name="zk0-ray-lines").start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """End the actors' processes and take no new one."""
        self._closed = True
        self._listener.close()
        for line in self._lines:
            with suppress(OSError), socket.socket(fileno=os.dup(line.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)  # closing alone tells nobody while a thread reads from it

    def _accept(self) -> None:
        while not self._closed:
            try:
                line = self._listener.accept()
                line.send(len(self._lines))
            except OSError:
                continue
            self._lines.append(line)
            threading.Thread(target=self._hear, args=(line,), daemon=True, name="zk0-ray-line").start()

    def _hear(self, line: Connection) -> None:
        try:
            while True:
                self._on_step(*line.recv())
        except (EOFError, OSError):
            return


@contextmanager
def ray_grid(
    nodes: int, workers: int, gpus: float, log_folder: Path, on_step: StepListener | None = None
) -> Iterator[RayGrid]:
    """A warm simulation of `nodes` virtual nodes on at most `workers` processes, each with a share `gpus` of a GPU.

    Raises:
        FederationError: Ray is not installed, or the simulation does not start.
    """
    try:
        import ray  # noqa: F401
    except ImportError as e:
        raise FederationError('engine "ray" needs Ray: install zk0[ray] (uv sync --extra ray)') from e
    log_folder.mkdir(parents=True, exist_ok=True)
    with _Lifelines(on_step) as lifelines:
        resources = {"num_cpus": 1.0, "num_gpus": gpus, **_RESTARTS}
        simulation = _Simulation(nodes, workers, resources, Supervised(lifelines.address, log_folder))
        simulation.start()
        try:
            yield simulation.grid()
        finally:
            lifelines.close()  # first: Flower's teardown waits for whoever trains
            simulation.stop()


class _Simulation:
    """`run_simulation` in a thread; its ServerApp hands out the grid and waits."""

    def __init__(self, nodes: int, workers: int, resources: dict[str, float], client_app: ClientApp) -> None:
        self._nodes, self._workers, self._client_app = nodes, workers, client_app
        self._resources = resources
        self._handed: queue.Queue[Any] = queue.Queue()
        self._ended: queue.Queue[BaseException | None] = queue.Queue()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="zk0-ray")

    def start(self) -> None:
        self._thread.start()

    def grid(self) -> RayGrid:
        try:
            found = self._handed.get(timeout=_START_SECONDS)
        except queue.Empty as e:
            raise FederationError(f"the Ray simulation did not start within {_START_SECONDS:g} s") from e
        if found is None:
            raise FederationError(f"the Ray simulation did not start: {self._ended.get()}")
        return RayGrid(found, self._ended)

    def stop(self) -> None:
        self._done.set()
        self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        from flwr.server import Grid, ServerApp
        from flwr.simulation import run_simulation

        server_app = ServerApp()

        @server_app.main()
        def main(grid: Grid, context: Any) -> None:
            self._handed.put(grid)
            self._done.wait()

        init_args = {"num_cpus": self._workers, "include_dashboard": False, "log_to_driver": False}
        failure: BaseException | None = None
        try:
            run_simulation(
                server_app,
                self._client_app,
                num_supernodes=self._nodes,
                backend_config={"client_resources": self._resources, "init_args": init_args},
            )
        except Exception as e:  # carried to the driving thread
            failure = e
        finally:
            self._ended.put(failure)
            self._handed.put(None)
