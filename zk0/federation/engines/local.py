"""The local engine: warm worker processes on this machine call the ClientApp, without server and network.

It has the interface of Flower's Grid, so that one `Federation` serves every engine.
"""

import json
import queue
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self

from flwr.app import Context, Error, Message, RecordDict

from zk0.errors import FederationError
from zk0.federation.engines.worker_process import ForkServer, WorkerProcess
from zk0.federation.flower.private_api import ErrorCode, new_message
from zk0.federation.protocol.client_app import ProgressListener

_FIRST_NODE = 1000
_STOP_SECONDS = 5.0


class LocalGrid:
    """Virtual nodes whose messages are handled by worker processes, or by this process with `workers = 0`.

    A message's time to live counts from the moment on at which a worker takes it up: a client does not lose the time
    for which it waits for its turn. In this process it is not limited.

    Args:
        nodes: the configuration of each node, one node a client.
        workers: number of processes.
        log_folder: for the output of the workers (worker-N.log) and of their fork server (workers.log).
        on_step: called with the progress of clients, and when they wait for a GPU, from a thread.
        max_workers: returns how many workers can work at a time; None: all. It may take seconds: worker 0 starts
            without waiting for it.
    """

    limits_turns = True

    def __init__(
        self,
        nodes: Iterable[Mapping[str, Any]],
        workers: int,
        log_folder: Path,
        on_step: ProgressListener | None = None,
        max_workers: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.run_id = uuid.uuid4().int >> 66
        self._contexts = {
            _FIRST_NODE + i: Context(self.run_id, _FIRST_NODE + i, dict(config), RecordDict(), {})
            for i, config in enumerate(nodes)
        }
        self._clients = {node: json.loads(str(c.node_config["client"]))["name"] for node, c in self._contexts.items()}
        self._jobs: queue.Queue[Message | None] = queue.Queue()
        self._open: set[str] = set()
        self._replies: dict[str, Message] = {}
        self._log_folder = log_folder
        self._on_step = on_step or (lambda *_: None)
        self._server = ForkServer(log_folder / "workers.log")
        self._workers = [WorkerProcess(self._server, i, log_folder, self._on_step) for i in range(workers)]
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self._max_workers = max_workers

    def __enter__(self) -> Self:
        self._log_folder.mkdir(parents=True, exist_ok=True)
        for number, worker in enumerate(self._workers):
            thread = threading.Thread(target=self._run_jobs, args=(number, worker), daemon=True, name="zk0-worker")
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self._closing.set()
        self._server.close()  # before the threads end: it ends with the one that started it
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(_STOP_SECONDS)

    def get_nodes(self) -> list[SimpleNamespace]:
        """Return all nodes, each with the name of its client; they are always connected."""
        return [SimpleNamespace(node_id=node, client=name) for node, name in self._clients.items()]

    def make_message(
        self, content: RecordDict, dst_node_id: int, message_type: str, ttl: float, group_id: str
    ) -> Message:
        """Create a message of this grid's run."""
        return new_message(self.run_id, content, dst_node_id, message_type, ttl, group_id)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Give messages to the workers, and return their ids."""
        ids = []
        for message in messages:
            ids.append(message.metadata.message_id)
            self._open.add(message.metadata.message_id)
            if self._workers:
                self._jobs.put(message)
            else:
                self._replies[message.metadata.message_id] = self._handle_here(message)
        return ids

    def pull_messages(self, ids: Iterable[str]) -> list[Message]:
        """Return the replies that have arrived, each once."""
        found = [i for i in ids if i in self._replies]
        self._open.difference_update(found)
        return [self._replies.pop(i) for i in found]

    def discard(self, ids: Iterable[str]) -> None:
        """Delete the replies to these messages; those that no worker has taken up are not handled."""
        for message_id in ids:
            self._open.discard(message_id)
            self._replies.pop(message_id, None)

    def _handle_here(self, message: Message) -> Message:
        from zk0.federation.protocol import client_app

        client_app.set_progress_listener(self._on_step)
        return client_app.flower_client_app(message, self._contexts[message.metadata.dst_node_id])

    def _run_jobs(self, number: int, worker: WorkerProcess) -> None:
        """Give jobs to one worker. The thread lives as long as the grid, because a fork server ends with its thread."""
        if number == 0:
            with suppress(OSError):  # the first request tries again, and tells
                self._server.start()
        elif (limit := self._max_workers()) is not None and number >= limit:
            return
        while (message := self._jobs.get()) is not None and not self._closing.is_set():
            metadata, node = message.metadata, message.metadata.dst_node_id
            if metadata.message_id not in self._open:  # its round is over; the next round must not wait for it
                continue
            try:
                reply, self._contexts[node] = worker.request(message, self._contexts[node], metadata.ttl)
            except FederationError as e:
                reply = Message(Error(ErrorCode.CLIENT_APP_CRASHED, str(e)), reply_to=message)
            except Exception as e:  # without a reply, and without this thread, the caller would wait for ever
                worker.kill()
                reply = Message(Error(ErrorCode.CLIENT_APP_CRASHED, f"{type(e).__name__}: {e}"), reply_to=message)
            self._replies[metadata.message_id] = reply
