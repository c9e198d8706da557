"""Processes that train, seen from whoever asks them: started in milliseconds, killed without loss."""

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
from zk0.federation.client_app import StepListener
from zk0.federation.worker import FORK, NUMBER_BYTES, WAIT

_START_SECONDS = 180.0
_STOP_SECONDS = 5.0


class ForkServer:
    """A process that imports what clients need once, and from which workers are forked.

    It dies with the thread that calls `start`, and workers die with it.

    Args:
        log: what it prints goes there.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._starting = threading.Lock()
        self._talking = threading.Lock()
        self._workers: set[int] = set()
        self._is_ready = False
        self._closed = False

    def start(self) -> None:
        """Start the process if there is none; it makes itself ready while others work."""
        with self._starting:
            if self._closed or (self._process is not None and self._process.poll() is None):
                return
            if self._line is not None:
                self._line.close()
            ours, theirs = socket.socketpair()
            ours.settimeout(_START_SECONDS)
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with theirs, self._log.open("ab") as log:
                command = [sys.executable, "-m", "zk0.federation.worker", str(theirs.fileno()), str(os.getpid())]
                self._process = subprocess.Popen(
                    command,
                    pass_fds=[theirs.fileno()],
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            self._line, self._workers, self._is_ready = ours, set(), False

    def fork(self, number: int, log: Path) -> tuple[int, Connection]:
        """Process id of a new worker `number` that prints to `log`, and the pipe to it.

        Raises:
            FederationError: there is no server, or it does not start.
        """
        with self._talking:
            self.start()
            ours, theirs = socket.socketpair()
            with theirs, log.open("ab") as file:
                pid = self._forked(number, (theirs.fileno(), file.fileno()))
            self._workers.add(pid)
            return pid, Connection(ours.detach())

    def exit_code(self, pid: int) -> int | None:
        """How a worker ended, waited for; minus the number of the signal that ended it. None: nobody knows."""
        try:
            with self._talking:
                if pid not in self._workers:
                    return None
                self._workers.remove(pid)
                return self._answer(WAIT, pid, ())
        except (FederationError, OSError):
            return None

    def close(self) -> None:
        """End the process and its workers, and start no other."""
        with self._starting:
            self._closed = True
            if self._process is None or self._line is None:
                return
            if self._is_ready:
                self._line.shutdown(socket.SHUT_RDWR)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_STOP_SECONDS)
            self._process.kill()
            self._process.wait(_STOP_SECONDS)
            self._line.close()

    def _forked(self, number: int, handles: tuple[int, int]) -> int:
        try:
            if not self._is_ready:
                self._receive(1)
                self._is_ready = True
            return self._answer(FORK, number, handles)
        except OSError as e:  # also when nothing came in time
            raise FederationError(f"workers do not start ({e}); see {self._log.name}") from e

    def _answer(self, asked: bytes, number: int, handles: tuple[int, ...]) -> int:
        if self._line is None:
            raise FederationError("the fork server was stopped")
        socket.send_fds(self._line, [asked + number.to_bytes(NUMBER_BYTES, signed=True)], handles)
        return int.from_bytes(self._receive(NUMBER_BYTES), signed=True)

    def _receive(self, count: int) -> bytes:
        if self._line is None or self._closed:
            raise FederationError("the fork server was stopped")
        found = self._line.recv(count)
        if not found:
            raise FederationError(f"the fork server has ended; see {self._log.name}")
        return found


class ClientProcess:
    """A worker, forked when it is first needed and again after it died.

    Args:
        server: it is forked from.
        number: of the worker; it tells which GPU it uses, and what it prints goes to worker-NUMBER.log.
        log_folder: where that lies.
        on_step: told client, round, step, steps and what they are of.
    """

    def __init__(self, server: ForkServer, number: int, log_folder: Path, on_step: StepListener) -> None:
        self._server = server
        self._number = number
        self._log = log_folder / f"worker-{number}.log"
        self._on_step = on_step
        self._pid: int | None = None
        self._connection: Connection | None = None
        self._changing = threading.Lock()
        self._closed = False

    def ask(
        self, message: Message, context: Context, deadline: float, lifeline: Connection | None = None
    ) -> tuple[Message, Context]:
        """The reply of the ClientApp, if it comes before `deadline` (of the monotonic clock).

        When the process dies, hangs or `lifeline` closes, it is killed: its finished updates are on disk.

        Raises:
            FederationError: no answer in time, the process died, or nobody waits for the answer any more.
        """
        try:
            return self._asked(message, context, deadline, lifeline)
        except FederationError:
            self.kill()
            raise
        except (EOFError, OSError) as e:
            raise FederationError(_ending(self.kill(), self._log)) from e

    def kill(self) -> int | None:
        """End the process at once; its exit code if it is known."""
        with self._changing:
            pid, self._pid = self._pid, None
            if self._connection is not None:
                self._connection.close()
                self._connection = None
        if pid is None:
            return None
        with suppress(ProcessLookupError):  # it is nobody else's: the fork server keeps its number until we ask
            os.kill(pid, signal.SIGKILL)
        return self._server.exit_code(pid)

    def close(self) -> None:
        """End the process and start no other."""
        self._closed = True
        with self._changing:
            if self._pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGKILL)

    def _asked(
        self, message: Message, context: Context, deadline: float, lifeline: Connection | None
    ) -> tuple[Message, Context]:
        connection = self._ready()
        connection.send((message, context))
        both = [connection, *([lifeline] if lifeline else [])]
        while True:
            ready = wait(both, max(0.0, deadline - time.monotonic()))
            if not ready:
                raise FederationError(f"no answer within {message.metadata.ttl:g} s")
            if connection not in ready:
                raise FederationError("the session has ended")
            kind, value = connection.recv()
            if kind == "reply":
                return value
            if kind == "step":
                self._on_step(*value)

    def _ready(self) -> Connection:
        if self._connection is not None:
            return self._connection
        if self._closed:
            raise FederationError("the worker was stopped")
        pid, connection = self._server.fork(self._number, self._log)
        with self._changing:
            self._pid, self._connection = pid, connection
        if not connection.poll(_START_SECONDS) or connection.recv()[0] != "ready":
            raise FederationError(f"the worker did not start within {_START_SECONDS:g} s; see {self._log.name}")
        return connection


def _ending(code: int | None, log: Path) -> str:
    """How a process ended, for people."""
    if code is None or code >= 0:
        return f"its process ended{'' if code is None else f' with exit code {code}'}; see {log.name}"
    why = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"its process was ended by {signal.Signals(-code).name}{why}; see {log.name}"
