"""Worker processes, as the engines use them: started in milliseconds, and killed without loss of finished updates.

The processes themselves run `zk0.federation.engines.worker`.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path

from flwr.app import Context, Message

from zk0.errors import FederationError
from zk0.federation.engines.worker import EXIT_CODE, FORK, NUMBER_BYTES
from zk0.federation.protocol.client_app import GPU_WAIT, ProgressListener
from zk0.storage.log_rotation import rotate_log

_START_SECONDS = 180.0
_STOP_SECONDS = 5.0


class ForkServer:
    """A process that imports what clients need once; workers are forked from it.

    It ends with the thread that calls `start`, even by SIGKILL, and its workers end with it.

    Args:
        log: file for its output.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._start_lock = threading.Lock()
        self._request_lock = threading.Lock()
        self._log_lock = threading.Lock()
        self._workers: set[int] = set()
        self._is_ready = False
        self._closed = False

    def start(self) -> None:
        """Start the process if none runs; it imports while the caller goes on."""
        with self._start_lock:
            if self._closed or self._runs():
                return
            if self._process is not None and self._socket is not None:
                self._process.kill()
                self._process.wait(_STOP_SECONDS)
                self._socket.close()
            ours, theirs = socket.socketpair()
            ours.settimeout(_START_SECONDS)
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with theirs, self._log.open("ab") as log:
                module = "zk0.federation.engines.worker"
                self._process = subprocess.Popen(
                    [sys.executable, "-m", module, str(theirs.fileno()), str(os.getpid())],
                    pass_fds=[theirs.fileno()],
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            self._socket, self._workers, self._is_ready = ours, set(), False

    def fork(self, number: int, log: Path) -> tuple[int, Connection]:
        """Fork worker `number` with its output in `log`; return its process id and the connection to it.

        Raises:
            FederationError: the fork server does not start, or was closed.
        """
        with self._request_lock:
            self.start()
            ours, theirs = socket.socketpair()
            with ours, theirs, log.open("ab") as file:
                pid = self._fork(number, (theirs.fileno(), file.fileno()))
                self._workers.add(pid)
                return pid, Connection(ours.detach())

    def rotate_log(self) -> None:
        """Compress the log if it is large; the process and its workers go on in the empty file."""
        with self._log_lock:  # several workers share the log
            rotate_log(self._log)

    def exit_code(self, pid: int) -> int | None:
        """Wait for a worker and return its exit code, negative for a signal; None where the server has ended itself."""
        try:
            with self._request_lock:
                if pid not in self._workers:
                    return None
                self._workers.remove(pid)
                return self._request(EXIT_CODE, pid, ())
        except (FederationError, OSError):
            return None

    def close(self) -> None:
        """End the process and its workers; it cannot be started again."""
        with self._start_lock:
            self._closed = True
            if self._process is None or self._socket is None:
                return
            if self._is_ready:
                self._socket.shutdown(socket.SHUT_RDWR)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_STOP_SECONDS)
            self._process.kill()
            self._process.wait(_STOP_SECONDS)
            self._socket.close()

    def _runs(self) -> bool:
        """Whether the process takes requests; one that was killed closes its end before it can be waited for."""
        if self._process is None or self._socket is None or self._process.poll() is not None:
            return False
        return not wait([self._socket], 0) or bool(self._socket.recv(1, socket.MSG_PEEK))

    def _fork(self, number: int, descriptors: tuple[int, int]) -> int:
        try:
            if not self._is_ready:
                self._receive(1)
                self._is_ready = True
            return self._request(FORK, number, descriptors)
        except OSError as e:  # also a timeout
            raise FederationError(f"workers do not start ({e}); see {self._log.name}") from e

    def _request(self, kind: bytes, number: int, descriptors: tuple[int, ...]) -> int:
        if self._socket is None:
            raise FederationError("the fork server was stopped")
        socket.send_fds(self._socket, [kind + number.to_bytes(NUMBER_BYTES, signed=True)], descriptors)
        return int.from_bytes(self._receive(NUMBER_BYTES), signed=True)

    def _receive(self, count: int) -> bytes:
        if self._socket is None or self._closed:
            raise FederationError("the fork server was stopped")
        found = self._socket.recv(count)
        if not found:
            raise FederationError(f"the fork server has ended; see {self._log.name}")
        return found


class WorkerProcess:
    """A worker that handles one message at a time; it is forked when it is first needed, and again after it died.

    Args:
        server: it is forked from.
        number: of the worker: it selects the GPU and the name of the log, worker-NUMBER.log.
        log_folder: for the log.
        on_step: called with the progress of clients, and when they wait for a GPU.
    """

    def __init__(self, server: ForkServer, number: int, log_folder: Path, on_step: ProgressListener) -> None:
        self._server = server
        self._number = number
        self._log = log_folder / f"worker-{number}.log"
        self._on_step = on_step
        self._pid: int | None = None
        self._connection: Connection | None = None
        self._state_lock = threading.Lock()

    def request(
        self, message: Message, context: Context, seconds: float, session: Connection | None = None
    ) -> tuple[Message, Context]:
        """Let the worker handle a message, and return the ClientApp's reply and the new context.

        A worker that dies, takes too long or whose session has ended is killed; updates that it has finished are
        on disk.

        Args:
            message: to handle.
            context: of the node.
            seconds: time limit, without the time for which the worker waits for a GPU.
            session: connection that closes when the session ends; None: none.

        Raises:
            FederationError: the worker did not answer in time, or died, or the session has ended.
        """
        try:
            return self._exchange(message, context, seconds, session)
        except FederationError:
            self.kill()
            raise
        except (EOFError, OSError) as e:
            raise FederationError(_exit_text(self.kill(), self._log)) from e

    def kill(self) -> int | None:
        """Kill the process, and return its exit code if it is known."""
        with self._state_lock:
            pid, self._pid = self._pid, None
            if self._connection is not None:
                self._connection.close()
                self._connection = None
        if pid is None:
            return None
        with suppress(ProcessLookupError):  # the process id is not reused before `exit_code` waits for the process
            os.kill(pid, signal.SIGKILL)
        return self._server.exit_code(pid)

    def _exchange(
        self, message: Message, context: Context, seconds: float, session: Connection | None
    ) -> tuple[Message, Context]:
        rotate_log(self._log)
        self._server.rotate_log()
        connection = self._connect()
        deadline = time.monotonic() + seconds  # not while the worker starts
        connection.send((message, context))
        connections = [connection, *([session] if session else [])]
        waiting_since: float | None = None
        while True:
            left = None if waiting_since is not None else max(0.0, deadline - time.monotonic())
            ready = wait(connections, left)
            if not ready:
                raise FederationError(f"no answer within {seconds:g} s")
            if connection not in ready:
                raise FederationError("the session has ended")
            kind, value = connection.recv()
            if kind == "reply":
                return value
            if kind == "step":
                *_, work = value
                waiting_since, deadline = _pause(work, waiting_since, deadline)
                self._on_step(*value)

    def _connect(self) -> Connection:
        """Return the connection to the worker, which is started if none runs."""
        if self._connection is not None:
            return self._connection
        pid, connection = self._server.fork(self._number, self._log)
        with self._state_lock:
            self._pid, self._connection = pid, connection
        if not connection.poll(_START_SECONDS) or connection.recv()[0] != "ready":
            raise FederationError(f"the worker did not start within {_START_SECONDS:g} s; see {self._log.name}")
        return connection


def _pause(work: str, waiting_since: float | None, deadline: float) -> tuple[float | None, float]:
    """Since when the worker waits for a GPU, None if it does not, and the deadline of its own work."""
    now = time.monotonic()
    if work == GPU_WAIT:
        return (now if waiting_since is None else waiting_since), deadline
    return None, deadline if waiting_since is None else deadline + now - waiting_since


def _exit_text(code: int | None, log: Path) -> str:
    if code is None or code >= 0:
        return f"its process ended{'' if code is None else f' with exit code {code}'}; see {log.name}"
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"its process was ended by {signal.Signals(-code).name}{hint}; see {log.name}"
